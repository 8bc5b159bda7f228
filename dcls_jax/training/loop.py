"""The training loop: steps over batches, rows of a log, evaluations, checkpoints, and an end to what diverges.

Everything is a function of the seed and of the number of steps done, so that a run which was killed and goes on from
its last checkpoint ends with the same parameters to the bit, and the same log but for the speed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dcls_jax.training.checkpoints import MEASURE, Checkpoints, is_first
from dcls_jax.training.data import Batch
from dcls_jax.training.log import Log
from dcls_jax.training.step import State, Step, everywhere, shared_out

_AHEAD = 2  # steps that devices may be behind, so that batches do not pile up

Evaluate = Callable[[State], Mapping[str, float]]
Report = Callable[[int, str], object]  # is told of so many steps just done, and a line about them


class DivergedError(ValueError):
    """A loss or update that is not finite; the message says at which step, and from where to go on."""


@dataclass(frozen=True)
class Plan:
    """How many steps there are, and after how many each thing is done; every number counts steps.

    evaluate_every: 0 for never. Where a state is kept, a row is logged too, and at the end both are done.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    log_every: int = 50
    save_every: int = 1000
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "steps_per_epoch", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be at least 1")

    def evaluates(self, step: int) -> bool:
        """Whether it is time to, after so many steps."""
        return bool(self.evaluate_every) and (step % self.evaluate_every == 0 or step == self.steps)

    def saves(self, step: int) -> bool:
        """Also where it evaluates, so that what evaluation found belongs to a state that is kept."""
        return step % self.save_every == 0 or step == self.steps or self.evaluates(step)

    def logs(self, step: int) -> bool:
        """Whether a row is due."""
        return step % self.log_every == 0 or self.saves(step)


def train(
    step: Step,
    state: State,
    batches: Callable[[int, int], Iterator[Batch]],
    plan: Plan,
    folder: Path,
    *,
    mesh: Mesh,
    learning_rate: Callable[[int], Any],
    evaluate: Evaluate | None = None,
    keep_best: Callable[[State], object] = lambda _: None,
    keep_each: Callable[[State], object] = lambda _: None,
    progress: Callable[[int], AbstractContextManager[Report]] = lambda _: nullcontext(lambda *_: None),
    tensorboard: bool = False,
    keep: int = 2,
) -> State:
    """The state after all steps, begun from `state` or gone on with from the last checkpoint in `folder`.

    step, state, mesh: of `step.py`. batches(start, stop): this process's rows of the batches of those steps.
    learning_rate: by step, for the log. evaluate(state) -> "top1" and "top5", of which the largest top1 is the best.
    keep_best(state): what is done with a state that is better than those before; keep_each(state): with each that is
    kept. progress(steps left) -> a report.
    folder: where log.csv, checkpoints/ and tensorboard/ are. keep: how many last checkpoints stay.
    Raises DivergedError where loss or updates are not finite, OSError where nothing can be written, and what reading
    the data raises.
    """
    state = everywhere(state, mesh)
    columns = [*_COLUMNS, *(["top1", "top5"] if evaluate else [])]
    curves = folder / "tensorboard" if tensorboard else None
    with Checkpoints(folder / "checkpoints", keep=keep) as checkpoints:
        state, notes = checkpoints.restore(state)
        done, best = int(state["step"]), float(notes.get("best", -1.0))
        logged = Log(folder / "log.csv", columns, start=done, tensorboard=curves) if is_first() else nullcontext()
        with logged as log, progress(plan.steps - done) as report:
            recent = _Recent(done)
            for batch in batches(done, plan.steps):
                state, measures = step(state, shared_out(batch, mesh))
                done += 1
                recent.add(measures)
                if not plan.logs(done):
                    report(1, "")
                    continue
                rate = float(learning_rate(done - 1))
                row = {"step": done, "epoch": done / plan.steps_per_epoch, "learning_rate": rate}
                row |= recent.row(plan.batch_size, checkpoints)
                found: Mapping[str, float] = {}
                if evaluate is not None and plan.evaluates(done):
                    found = evaluate(state)
                    if found[MEASURE] > best:
                        best = found[MEASURE]
                        keep_best(state)
                row |= found
                if log is not None:  # before the state, with which a run that goes on knows which rows are there
                    log.add(row)
                if plan.saves(done):
                    keep_each(state)
                    checkpoints.save(done, state, {"best": best}, found)
                report(1, _line(row))
                recent = _Recent(done)
    return state


_MEASURES = "loss", "fit", "repulsion", "accuracy"
_COLUMNS = "step", "epoch", "learning_rate", *_MEASURES, "images_per_second"


class _Recent:
    """What steps after the first `done` ones measured, on the devices until a row is due."""

    def __init__(self, done: int) -> None:
        self._done, self._measures, self._start = done, list[dict[str, Any]](), time.perf_counter()

    def add(self, measures: dict[str, Any]) -> None:
        """Wait for the devices, where they are steps behind."""
        self._measures.append(measures)
        jax.block_until_ready(self._measures[-_AHEAD:][0])

    def row(self, batch_size: int, checkpoints: Checkpoints) -> dict[str, float]:
        """The mean of each measure, and the speed. Raises DivergedError where something is not finite."""
        values = jax.device_get(self._measures)
        for step, measures in enumerate(values, self._done + 1):
            if not measures["finite"]:
                checkpoints.wait()
                onward = (
                    f"the last good checkpoint is {checkpoints.last}" if checkpoints.last else "nothing was kept yet"
                )
                raise DivergedError(
                    f"step {step}: the loss ({measures['loss']}) or the update is not finite; {onward}; "
                    "a lower learning rate may help"
                )
        speed = len(values) * batch_size / (time.perf_counter() - self._start)
        means = {name: float(np.mean([it[name] for it in values], dtype=np.float64)) for name in _MEASURES}
        return means | {"images_per_second": speed}


def _line(row: Mapping[str, float]) -> str:
    shown = {"epoch": ".1f", "loss": ".4f", "accuracy": ".3f", "top1": ".2%"}
    return ", ".join(f"{name} {row[name]:{form}}" for name, form in shown.items() if name in row)

"""States of a run, kept as it goes: written in the background, complete or not there, the last ones and the best."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

from dcls_jax.errors import said_once, system_error
from dcls_jax.training.step import State

MEASURE = "top1"  # of what evaluation finds, by which the best state is known


class Checkpoints:
    """Orbax checkpoints of a run in `folder`, one for each step that was kept, named by the number of steps done.

    keep: how many of the last ones are kept, beside the one whose evaluation found the largest top1.
    To be used in a `with` block by all processes of the job; it ends when what is being written is complete.
    OSError, in one line, where the folder cannot be written, from `save`, `wait` or the end of the block.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep (={keep}) must be at least 1")
        self.folder = folder.absolute()
        policies = ocp.training.preservation_policies
        policy = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(
                    get_metric_fn=lambda found: found.get(MEASURE, -1.0), n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._last: int | None = None
        self._writing: Any = None
        with _errors(self.folder):
            self._checkpointer = ocp.training.Checkpointer(
                self.folder, preservation_policy=policy, cleanup_tmp_directories=True
            )

    def __enter__(self) -> Self:
        self._quiet = ExitStack()
        self._quiet.enter_context(said_once())  # threads that write in the background have their say here too
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        with self._quiet:
            try:
                if kind is None:
                    self.wait()
            except OSError:
                self._close()
                raise
            self._close()

    def _close(self) -> None:
        with suppress(Exception):  # it says again what `wait` or the error that ends the block has said
            self._checkpointer.close()

    def restore(self, state: State) -> tuple[State, dict[str, Any]]:
        """The last state, on the devices that `state` is on, and what was noted beside it; else `state` and nothing."""
        latest = self._checkpointer.latest
        if latest is None:
            return state, {}
        self._last = latest.step
        notes = self._checkpointer.metadata(latest.step).custom_metadata or {}
        return self._checkpointer.load(latest.step, state), dict(notes)

    def save(self, step: int, state: State, notes: Mapping[str, Any], found: Mapping[str, float]) -> None:
        """Begin to write a state, after the one before is complete.

        notes: JSON values that `restore` gives back. found: what evaluation found of this very state, if it was.
        """
        self.wait()
        with _errors(self.folder):
            self._writing = self._checkpointer.save_async(
                step, state, force=True, metrics=dict(found) or None, custom_metadata=dict(notes)
            )
        self._pending = step

    def wait(self) -> None:
        """Until what is being written is complete."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        with _errors(self.folder):
            writing.result()
        self._last = self._pending

    @property
    def last(self) -> Path | None:
        """The last complete checkpoint, if there is one."""
        return None if self._last is None else self.folder / str(self._last)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        with said_once():
            yield
    except Exception as error:  # orbax raises many kinds for what is one thing to the user
        raise system_error(error, folder) from error


def is_first() -> bool:
    """Whether this is the process of the job that speaks and writes for all."""
    return jax.process_index() == 0

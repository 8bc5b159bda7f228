"""The steps that evaluations and training repeat: ClickMe with its ranks, deletion and insertion, a training step."""

from collections.abc import Callable
from functools import cache
from typing import Any

import training
from flax import nnx

from dcls_jax.eval import Settings, clickme, faithfulness
from dcls_jax.eval.jobs import Job, program_of
from dcls_jax.eval.program import Program
from dcls_jax.eval.status import Status
from dcls_jax.models import Backbone
from on_device.log import Log, seconds
from on_device.weights import known_model

MODELS = ("convnext_tiny", "resnet50")
CLICKME, TRAINING, CURVES = "ClickMe", "training", "deletion and insertion"
SENDING = ", batches sent"  # from the host's memory, as an evaluation does; else they are there
STEPS = (CLICKME, CLICKME + SENDING, TRAINING, CURVES)


def run(log: Log, small: bool) -> None:
    batch = 2 if small else 64
    for name in MODELS[:1] if small else MODELS:
        model, _ = known_model(name, True, small=small, frozen=False)
        for step in STEPS:
            about = {"model": name, "step": step, "batch": batch}
            if log.left() < 10:
                log.write("left out", **about)
                continue
            with log.attempt("step", **about):
                call = _training(model, batch, small) if step == TRAINING else _evaluation(model, step, batch)
                log.write("step", **about, images_per_s=batch / seconds(call, turn=0.3))


def _evaluation(model: Backbone, step: str, batch: int) -> Callable[[], Any]:
    program = _program(model, step.removesuffix(SENDING), batch)
    images = program.stacked([Status.UNREADABLE] * batch)  # zeros cost what pictures do
    there = images if step.endswith(SENDING) else program.sent(images)
    return lambda: program.run(there)


@cache
def _program(model: Backbone, step: str, batch: int) -> Program:
    metric = (
        clickme.metric(model, clickme.PROTOCOLS, method="grad_cam", transform=model.transform)
        if step == CLICKME
        else faithfulness.metric(model.transform, method="grad_cam", presets=["rise"])
    )
    return program_of([Job(metric, model, Settings())], Settings(batch_size=batch))


def _training(model: Backbone, batch: int, small: bool) -> Callable[[], Any]:
    return training.ours(nnx.clone(model), batch, 64 if small else 224)

"""The steps that evaluations and training repeat: ClickMe with its ranks, deletion and insertion, a training step."""

from collections.abc import Callable

import jax
from kernel_construction import step as training_step

from dcls_jax.eval import Settings, clickme, faithfulness
from dcls_jax.eval.jobs import Job, program_of
from dcls_jax.eval.metric import Metric
from dcls_jax.eval.status import Status
from dcls_jax.models import Backbone
from on_device.log import Log, seconds
from on_device.weights import known_model

MODELS = ("convnext_tiny", "resnet50")
METRICS: dict[str, Callable[[Backbone], Metric]] = {
    "ClickMe": lambda model: clickme.metric(model, clickme.PROTOCOLS, method="grad_cam", transform=model.transform),
    "deletion and insertion": lambda model: faithfulness.metric(model.transform, method="grad_cam", presets=["rise"]),
}


def run(log: Log, small: bool) -> None:
    batch = 2 if small else 64
    for name in MODELS[:1] if small else MODELS:
        model, _ = known_model(name, True, small=small, frozen=False)
        for step, metric_of in METRICS.items():
            if log.left() < 10:
                log.write("left out", model=name, step=step)
                continue
            with log.attempt("step", model=name, step=step):
                program = program_of([Job(metric_of(model), model, Settings())], Settings(batch_size=batch))
                images = program.stacked([Status.UNREADABLE] * batch)  # zeros cost what pictures do
                time = seconds(lambda p=program, x=images: p.run(x), turn=0.3)
                log.write("step", model=name, step=step, batch=batch, images_per_s=batch / time)
        if log.left() < 10:
            log.write("left out", model=name, step="training")
            continue
        with log.attempt("step", model=name, step="training"):
            call = training_step(model, batch, side=64 if small else 224)
            jax.block_until_ready(call())
            time = seconds(call, turn=0.3)
            log.write("step", model=name, step="training", batch=batch, images_per_s=batch / time)

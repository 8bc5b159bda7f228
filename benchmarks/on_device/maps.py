"""Grad-CAM of every model at matmul precision "highest", beside what float64 on a CPU gives."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from on_device.log import Log, Program, compiled, untuned
from on_device.lowerings import relative
from on_device.weights import all_models, explanation, images_of, known_model, references


def run(log: Log, small: bool) -> None:
    totals = {}

    def programs() -> Iterator[Program]:
        for name, dcls in all_models(small):
            about = {"model": name, "dcls": dcls}
            with log.attempt("maps", **about):
                model, totals[name, dcls] = known_model(name, dcls)
                explain, state = explanation(model, np.arange(2))
                with jax.default_matmul_precision("highest"):
                    yield Program.of(about, explain, state, jnp.asarray(images_of(2)), options=untuned())

    for program in compiled(log, programs()):
        with log.attempt("maps", **program.fields):
            name, dcls = program.fields["model"], program.fields["dcls"]
            wanted = {what: references()[f"{name}/{dcls}/{what}"] for what in ("logits", "map", "scale", "total")}
            if abs(wanted["total"] / totals[name, dcls] - 1) > 1e-9:
                raise ValueError("the references are for other weights: make them anew, by --references")
            got = jax.device_get(program())
            off = np.abs(got["map"].astype(np.float64) - wanted["map"]).max() / wanted["scale"].max()
            log.write(
                "maps",
                **program.fields,
                logits=relative(got["logits"], wanted["logits"]),
                map_of_scale=float(off),
                compile_s=program.seconds,
            )

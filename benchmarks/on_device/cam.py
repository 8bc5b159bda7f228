"""Grad-CAM as users run it: frozen models in float32, in the platform's shorter products, and in bfloat16."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from on_device.log import Log, Program, compiled, seconds
from on_device.weights import all_models, explanation, images_of, known_model, references

# name: dtype of the model, matmul precision. On GPUs "default" is TF32, on TPUs one pass in bfloat16.
ARITHMETIC = {"float32": (None, "highest"), "default": (None, "default"), "bfloat16": (jnp.bfloat16, "default")}
# Arithmetic, batch and number of models, the most wanted first; the largest batch where memory is least.
CASES = (
    ("bfloat16", 64, 8),
    ("default", 64, 8),
    ("float32", 64, 4),
    ("bfloat16", 256, 4),
    ("bfloat16", 64, 16),
)
SMALL_CASES = (("bfloat16", 2, 2), ("default", 2, 2), ("float32", 2, 2))


def run(log: Log, small: bool) -> None:
    cases = {
        (arithmetic, batch, *model): None  # once each, in this order
        for arithmetic, batch, count in (SMALL_CASES if small else CASES)
        for model in all_models(small)[:count]
    }
    images = {batch: jnp.asarray(images_of(batch, small)) for _, batch, *_ in cases}

    def programs() -> Iterator[Program]:
        for arithmetic, batch, name, dcls in cases:
            dtype, precision = ARITHMETIC[arithmetic]
            about = {"model": name, "dcls": dcls, "batch": batch, "arithmetic": arithmetic}
            with log.attempt("cam", **about), jax.default_matmul_precision(precision):
                model, _ = known_model(name, dcls, dtype=dtype, small=small)
                explain, state = explanation(model, np.arange(batch))
                yield Program.of(about, partial(_map, explain), state, images[batch])

    for program in compiled(log, programs(), spare=log.left() / 4):
        if log.left() < 3:
            log.write("left out", **program.fields)
            continue
        with log.attempt("cam", **program.fields):
            _measured(log, program, small)


def _map(explain: Callable[..., dict[str, jax.Array]], state: Any, images: jax.Array) -> jax.Array:
    return explain(state, images)["map"]


def _measured(log: Log, program: Program, small: bool) -> None:
    about = program.fields
    off = None
    if not small:
        raw, scale = (references()[f"{about['model']}/{about['dcls']}/{what}"] for what in ("map", "scale"))
        off = float(np.abs(np.asarray(program()[:2], np.float64) - raw).max() / scale.max())
    log.write(
        "cam",
        **about,
        images_per_s=about["batch"] / seconds(program, turn=0.25),
        compile_s=program.seconds,
        gib=program.gibibytes,
        map_of_scale=off,
    )

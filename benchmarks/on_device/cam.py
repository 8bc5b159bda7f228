"""Grad-CAM as users run it: frozen models in float32, in the platform's shorter products, and in bfloat16."""

from collections.abc import Iterator
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import torch_rivals

from on_device.log import Log, Program, compiled, seconds
from on_device.weights import all_models, explanation, images_of, known_model, references

# name: dtype of the model, matmul precision. On GPUs "default" is TF32, on TPUs one pass in bfloat16.
ARITHMETIC = {"float32": (None, "highest"), "default": (None, "default"), "bfloat16": (jnp.bfloat16, "default")}
BATCHES = (64, 256)


def run(log: Log, small: bool) -> None:
    """The largest batch in bfloat16 alone, where memory is least."""
    for batch in (2,) if small else BATCHES:
        names = list(ARITHMETIC)[-1:] if batch == BATCHES[-1] else list(ARITHMETIC)
        images, labels = images_of(batch, small), np.arange(batch)

        def programs(
            batch: int = batch, names: list[str] = names, images: np.ndarray = images, labels: np.ndarray = labels
        ) -> Iterator[Program]:
            for name, dcls in all_models(small):
                for arithmetic in names:
                    dtype, precision = ARITHMETIC[arithmetic]
                    about = {"model": name, "dcls": dcls, "batch": batch, "arithmetic": arithmetic}
                    with log.attempt("cam", **about), jax.default_matmul_precision(precision):
                        model, _ = known_model(name, dcls, dtype=dtype, small=small)
                        explain, state = explanation(model, labels)
                        yield Program.of(about, lambda s, x, e=explain: e(s, x)["map"], state, jnp.asarray(images))

        for program in compiled(log, programs(), spare=log.left() / 3):
            if log.left() < 3:
                log.write("left out", **program.fields)
                continue
            with log.attempt("cam", **program.fields):
                _measured(log, program, small)
    for name, dcls in all_models(small) if torch_rivals.there_is_torch() else ():
        for dtype in ("float32",) if small else ("float32", "bfloat16"):
            _torchs(log, name, dcls, dtype, small)


def _torchs(log: Log, name: str, dcls: bool, dtype: str, small: bool) -> None:
    batch = 2 if small else BATCHES[0]
    about = {"model": name, "dcls": dcls, "batch": batch, "arithmetic": dtype}
    with log.attempt("torch cam", **about):
        recipes = torch_rivals.grad_cams(name, dcls, images_of(batch, small), dtype)
        for recipe, call in islice(recipes, 1 if small else None):
            if log.left() < 20:
                return
            time = seconds(call, turn=0.3, rounds=2, wait_for=torch_rivals.wait_for)
            log.write("torch cam", **about, recipe=recipe, images_per_s=batch / time)


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

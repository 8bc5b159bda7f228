"""Grad-CAM in PyTorch on the same device: careful, compiled, and the study's recipe."""

import time

import torch_rivals

from on_device.log import Log, seconds
from on_device.weights import all_models, images_of

RECIPES = (("bfloat16", "careful"), ("bfloat16", "compiled"), ("float32", "careful"), ("float32", "study"))


def run(log: Log, small: bool) -> None:
    """Every recipe of a model, then the next model's: compilation takes a minute, and there may be time for few."""
    if not torch_rivals.there_is_torch():
        log.write("left out", why="torch is not installed")
        return
    batch = 2 if small else 64
    for name, dcls in all_models(small):
        for dtype, recipe in RECIPES[2:3] if small else RECIPES:
            about = {"model": name, "dcls": dcls, "batch": batch, "arithmetic": dtype, "recipe": recipe}
            if log.left() < 10:
                log.write("left out", **about, then="all that come after it")
                return
            with log.attempt("torch cam", **about):
                start = time.perf_counter()
                call = torch_rivals.grad_cam(name, dcls, images_of(batch, small), dtype, recipe)
                call()
                torch_rivals.wait_for()
                first = time.perf_counter() - start
                time_of_one = seconds(call, turn=0.3, rounds=2, wait_for=torch_rivals.wait_for)
                log.write("torch cam", **about, compile_s=first, images_per_s=batch / time_of_one)

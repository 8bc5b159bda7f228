"""Grad-CAM per image: ours, the study's PyTorch recipe, and the best a careful PyTorch user could write.

    python benchmarks/cam_vs_torch.py [--models convnext_tiny,...] [--batch 8]

(a) the study's recipe: full forward, full backward, DCLS kernels constructed at each call. (b) channels_last, kernels
constructed once, gradient of the head alone; as it is or by torch.compile, whichever is faster. Ours: `freeze`, then
`study_maps` compiled. Needs the parity extra. Models have random weights; times are minima over rounds in which all
take turns. Memory is the peak of a process of its own that makes the model and two batches of maps.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from timing import machine, minima
from torch_rivals import careful_grad_cam, study_grad_cam, waited_for

from dcls_jax import compiler_options, freeze
from dcls_jax.eval.study import study_maps
from dcls_jax.models import create_model, list_models

COLUMNS = ("model", "(a) study", "(b) careful", "ours", "(a)/ours", "(b)/ours", "first call", "peak memory a, b, ours")


def images_of(batch: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 224, 224, 3), np.float32)


def ours(name: str, dcls: bool, batch: int) -> Callable[[], object]:
    graph, state = nnx.split(freeze(create_model(name, dcls=dcls)))

    def maps(state: nnx.State, x: jax.Array) -> jax.Array:
        return study_maps(nnx.merge(graph, state), x, np.arange(batch), size=None)

    explain = jax.jit(maps, compiler_options=compiler_options())
    x = jnp.asarray(images_of(batch))
    return lambda: jax.block_until_ready(explain(state, x))


def study(name: str, dcls: bool, batch: int) -> Callable[[], object]:
    return waited_for(study_grad_cam(name, dcls, images_of(batch)))


def careful(name: str, dcls: bool, batch: int, *, compiled: bool = False) -> Callable[[], object]:
    return waited_for(careful_grad_cam(name, dcls, images_of(batch), compiled=compiled))


CANDIDATES: dict[str, Callable[[str, bool, int], Callable[[], object]]] = {"a": study, "b": careful, "ours": ours}


def peak_memory(candidate: str, name: str, dcls: bool, batch: int) -> float:
    """GiB, of a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (candidate, name, dcls, batch))


def _peak_memory(candidate: str, name: str, dcls: bool, batch: int) -> float:
    call = CANDIDATES[candidate](name, dcls, batch)
    call()
    call()
    # Not `resource.getrusage`: a child inherits its parent's peak.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def row(name: str, dcls: bool, batch: int, rounds: int) -> tuple[float, float]:
    """Time one model, print its row, return how many times faster than (a) and (b) ours is."""
    explain = ours(name, dcls, batch)
    start = time.perf_counter()
    explain()
    first = time.perf_counter() - start
    candidates = {
        "a": study(name, dcls, batch),
        "b": careful(name, dcls, batch),
        "b compiled": careful(name, dcls, batch, compiled=True),
        "ours": explain,
    }
    seconds = minima(candidates, rounds=rounds)
    seconds["b"] = min(seconds["b"], seconds["b compiled"])
    a, b, own = (1e3 * seconds[key] / batch for key in CANDIDATES)
    memory = ", ".join(f"{peak_memory(candidate, name, dcls, batch):.1f}" for candidate in CANDIDATES)
    times = f"{a:.0f} | {b:.1f} | {own:.1f} | {a / own:.1f}x | {b / own:.2f}x | {first:.1f} s | {memory} GiB"
    print(f"| {name}{' dcls' if dcls else ''} | {times} |", flush=True)
    return a / own, b / own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(list_models()))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"Grad-CAM, ms per image, batch {options.batch}, 224x224, float32; {machine()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for dcls in (True, False):
        gains = [row(name, dcls, options.batch, options.rounds) for name in options.models.split(",")]
        over_a, over_b = (math.prod(gain) ** (1 / len(gains)) for gain in zip(*gains, strict=True))
        print(f"| geometric mean{' dcls' if dcls else ''} | | | | {over_a:.1f}x | {over_b:.2f}x | | |", flush=True)


if __name__ == "__main__":
    main()

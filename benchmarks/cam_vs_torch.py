"""Grad-CAM per image: ours, the study's PyTorch recipe, and the best a careful PyTorch user could write.

    python benchmarks/cam_vs_torch.py [--models convnext_tiny,...] [--batch 8]

(a) the study's recipe: full forward, full backward, DCLS kernels constructed at each call. (b) channels_last, kernels
constructed once, gradient of the head alone. Ours: `freeze`, then `study_maps` compiled. Needs the parity extra.
Models have random weights; times are minima over rounds in which all three take turns.
"""

import argparse
import math
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from timing import machine, minima

from dcls_jax import compiler_options, freeze
from dcls_jax.cam import study_maps
from dcls_jax.models import create_model, list_models

if TYPE_CHECKING:
    import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


COLUMNS = ("model", "(a) study", "(b) careful", "ours", "(a)/ours", "(b)/ours", "first call")


def row(name: str, dcls: bool, batch: int, rounds: int) -> tuple[float, float]:
    """Time one model, print its row, return how many times faster than (a) and (b) ours is."""
    import torch

    from tests.torch_models import constructed, study_grad_cam, torch_model

    images = np.random.default_rng(0).standard_normal((batch, 224, 224, 3), np.float32)
    labels = np.arange(batch)
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels), 1000).float()
    nchw = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    nhwc = nchw.contiguous(memory_format=torch.channels_last)
    study = torch_model(name, dcls)
    careful = constructed(torch_model(name, dcls)).to(memory_format=torch.channels_last)

    graph, state = nnx.split(freeze(create_model(name, dcls=dcls)))
    explain = jax.jit(
        lambda state, x: study_maps(nnx.merge(graph, state), x, labels, size=None), compiler_options=compiler_options()
    )
    x = jnp.asarray(images)
    start = time.perf_counter()
    jax.block_until_ready(explain(state, x))
    first = time.perf_counter() - start

    seconds = minima(
        {
            "a": lambda: study_grad_cam(study, nchw, one_hot) and None,
            "b": lambda: head_grad_cam(careful, nhwc, one_hot),
            "ours": lambda: explain(state, x),
        },
        rounds=rounds,
    )
    a, b, ours = (1e3 * seconds[key] / batch for key in ("a", "b", "ours"))
    times = f"{a:.0f} | {b:.1f} | {ours:.1f} | {a / ours:.1f}x | {b / ours:.2f}x | {first:.1f} s"
    print(f"| {name}{' dcls' if dcls else ''} | {times} |", flush=True)
    return a / ours, b / ours


def head_grad_cam(model: "torch.nn.Module", images: "torch.Tensor", one_hot: "torch.Tensor") -> None:
    """Careful torch: no graph but the head's."""
    import torch

    with torch.no_grad():
        activations = model.forward_features(images)
    activations.requires_grad_()
    score = (model.forward_head(activations) * one_hot).sum()
    (gradients,) = torch.autograd.grad(score, activations)
    with torch.no_grad():
        torch.relu((gradients.mean((2, 3), keepdim=True) * activations).mean(1))


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
        print(f"| geometric mean{' dcls' if dcls else ''} | | | | {over_a:.1f}x | {over_b:.2f}x | |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of the whole process {peak:.1f} GiB")


if __name__ == "__main__":
    main()

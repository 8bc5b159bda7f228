"""Every method of `dcls_jax.cam.METHODS` against pytorch-grad-cam, per image, on the same architecture.

    TQDM_DISABLE=1 python benchmarks/cam_methods.py [--model convnext_tiny] [--dcls] [--batch 8] [--methods a,b,c]

Both give maps in [0, 1] at image size. The peer runs on timm's model, with DCLS kernels constructed once; ours is
frozen and compiled. Weights are random; times are minima over rounds in which both take turns, on this machine.
Methods that run the model many times per image take one image and one round, the Score-CAMs at a layer with few
channels and with few samples, as their rows say (REDUCED). Needs the parity extra.
"""

import argparse
import inspect
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from timing import machine, minima

from dcls_jax import compiler_options, freeze
from dcls_jax.cam import METHODS, postprocess
from dcls_jax.models import create_model

sys.path.insert(0, str(Path(__file__).parents[1]))

COLUMNS = ("method", "setting", "pytorch-grad-cam", "ours", "ratio", "first call")

PEERS = {
    "ablation_cam": "AblationCAM",
    "eigen_cam": "EigenCAM",
    "eigen_grad_cam": "EigenGradCAM",
    "elementwise": "GradCAMElementWise",
    "fem": "FEM",
    "finer_cam": "FinerCAM",
    "full_grad": "FullGrad",
    "grad_cam": "GradCAM",
    "grad_cam_pp": "GradCAMPlusPlus",
    "hires_cam": "HiResCAM",
    "kpca_cam": "KPCA_CAM",
    "layer_cam": "LayerCAM",
    "random_cam": "RandomCAM",
    "score_cam": "ScoreCAM",
    "seg_eigen_cam": "SegEigenCAM",
    "shapley_cam": "ShapleyCAM",
    "xgrad_cam": "XGradCAM",
}


class Reduced(NamedTuple):
    """What an expensive method is timed with."""

    layer: str
    options: dict[str, Any]


REDUCED = {
    "ablation_cam": Reduced("stages.3", {}),
    "full_grad": Reduced("every layer", {}),
    "group_cam": Reduced("stages.3", {}),
    "guided_backprop": Reduced("pixels", {}),
    "input_x_gradient": Reduced("pixels", {}),
    "integrated_grad_cam": Reduced("stages.3", {}),
    "integrated_gradients": Reduced("pixels", {"steps": 10}),
    "is_cam": Reduced("stages.0", {"steps": 2}),
    "occlusion": Reduced("pixels", {}),
    "rise": Reduced("pixels", {"masks": 256}),
    "score_cam": Reduced("stages.0", {}),
    "smooth_grad": Reduced("pixels", {"samples": 10}),
    "ss_cam": Reduced("stages.0", {"samples": 2}),
}


class Bench(NamedTuple):
    """The two models and their input."""

    graph: Any
    state: Any
    images: np.ndarray
    peer: Any  # torch.nn.Module
    channels_last: bool


def ours(bench: Bench, name: str, batch: int, layer: str, options: dict[str, Any]) -> Callable[[], jax.Array]:
    """One call of our method."""
    method, labels = METHODS[name], jnp.arange(batch)
    parameters = inspect.signature(method).parameters
    if "key" in parameters:
        options = options | {"key": jax.random.key(0)}
    if layer.startswith("stages"):  # not of the pixels, nor of every layer
        options = options | {"layer": layer}

    @partial(jax.jit, compiler_options=compiler_options())
    def explain(state: Any, x: jax.Array) -> jax.Array:
        maps = method(nnx.merge(bench.graph, state), x, labels, **options)
        return postprocess(maps, size=x.shape[1:3]) if maps.ndim == 3 else maps

    x = jnp.asarray(bench.images[:batch])
    return lambda: explain(bench.state, x)


def stage_of(peer: Any, layer: str) -> Any:
    """The module of the peer's model that is our "stages.i"."""
    stage = int(layer.removeprefix("stages."))
    return peer.stages[stage] if hasattr(peer, "stages") else getattr(peer, f"layer{stage + 1}")


def peers(bench: Bench, name: str, batch: int, layer: str) -> Callable[[], object]:
    """One call of the peer's method."""
    import pytorch_grad_cam
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layers = [] if name == "full_grad" else [stage_of(bench.peer, layer)]
    x = torch.tensor(bench.images[:batch].transpose(0, 3, 1, 2).copy())
    if bench.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    # Its Finer-CAM looks for the contrast itself if it is given none, as ours does.
    targets = None if name == "finer_cam" else [ClassifierOutputTarget(label) for label in range(batch)]

    def explain() -> object:
        # Built for each call, as its documentation does; its hooks would slow down the methods after it.
        with getattr(pytorch_grad_cam, PEERS[name])(model=bench.peer, target_layers=layers) as method:
            return method(input_tensor=x, targets=targets)

    return explain


def row(bench: Bench, name: str, layer: str, rounds: int) -> None:
    """Time one method and print its row."""
    options: dict[str, Any] = {}
    batch = len(bench.images)
    if name in REDUCED:
        (layer, options), batch, rounds = REDUCED[name], 1, 1
    call = ours(bench, name, batch, layer, options)
    start = time.perf_counter()
    try:
        jax.block_until_ready(call())
    except ValueError as error:  # such as `cam`, which is for linear heads alone
        print(f"| {name} | not for this model: {error} |" + " |" * (len(COLUMNS) - 2), flush=True)
        return
    first = time.perf_counter() - start
    candidates: dict[str, Callable[[], object]] = {"ours": call}
    if name in PEERS:
        candidates["peer"] = peers(bench, name, batch, layer)
    seconds = minima(candidates, rounds=rounds)
    own = 1e3 * seconds["ours"] / batch
    peer = 1e3 * seconds["peer"] / batch if "peer" in seconds else None
    said = ", ".join([f"batch {batch}", layer, *(f"{key} {value}" for key, value in options.items())])
    theirs = ("", "") if peer is None else (f"{peer:.0f}", f"{peer / own:.1f}x")
    print(f"| {name} | {said} | {theirs[0]} | {own:.1f} | {theirs[1]} | {first:.1f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--dcls", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--layer", default="stages.3", help="a whole stage, for methods that are not reduced")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels-last", action="store_true", help="the peer's model in its faster memory layout")
    arguments = parser.parse_args()

    # Before pytorch_grad_cam, which needs a torchvision that imports.
    from tests.torch_models import constructed, torch_model

    graph, state = nnx.split(freeze(create_model(arguments.model, dcls=arguments.dcls)))
    peer: Any = constructed(torch_model(arguments.model, arguments.dcls))
    if arguments.channels_last:
        import torch

        peer = peer.to(memory_format=torch.channels_last)
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    bench = Bench(graph, state, images, peer, arguments.channels_last)

    layout = "channels_last" if arguments.channels_last else "NCHW"
    title = f"{arguments.model}{' dcls' if arguments.dcls else ''}, {arguments.size}x{arguments.size}, float32"
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"ms per image, {title}, peer in {layout}; {machine()}, {load}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in arguments.methods.split(","):
        row(bench, name, arguments.layer, arguments.rounds)


if __name__ == "__main__":
    main()

"""One training step with DCLS: ours, and eager PyTorch with the `dcls` package, as it is and channels_last.

    python benchmarks/training.py [--models convnext_tiny,resnet50] [--batch 8] [--size 224] [--rounds 3]

A step is forward, backward, AdamW with positions five times faster, and clamping, in float32 and training mode, on
images that are there; without stochastic depth and the repulsive loss. Models have random weights; times are minima
over rounds in which all take turns. Needs the parity extra.
"""

import argparse
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from timing import machine, minima
from torch_rivals import device, waited_for

from dcls_jax import compiler_options
from dcls_jax.models import Backbone, create_model
from dcls_jax.training import clamp_positions, optimiser

RATE, DECAY, FACTOR = 1e-3, 0.05, 5.0
COLUMNS = ("model", "torch", "torch, channels_last", "ours", "torch/ours", "channels_last/ours", "first call")


def batch_of(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).standard_normal((count, size, size, 3), np.float32), np.arange(count)


def step_of(graph: nnx.GraphDef, optimise: optax.GradientTransformation) -> Callable[..., tuple[tuple, jax.Array]]:
    """step(state, images, labels) -> state and loss, of parameters, moments and whatever else a model has."""

    def step(state: tuple, images: jax.Array, labels: jax.Array) -> tuple[tuple, jax.Array]:
        params, moments, rest = state

        def loss_of(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            model = nnx.merge(graph, params, rest, copy=True)
            logits = model(images).astype(jnp.float32)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, nnx.split(model, nnx.Param, ...)[2]

        (loss, after), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = optimise.update(gradients, moments, params)
        model = nnx.merge(graph, optax.apply_updates(params, updates), after)
        clamp_positions(model)
        return (nnx.state(model, nnx.Param), moments, after), loss

    return step


def ours(model: Backbone, count: int, size: int) -> Callable[[], object]:
    """One step after another of a model, which is put into training mode and else left as it is."""
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimise = optimiser(RATE, DECAY, FACTOR)
    compiled = jax.jit(step_of(graph, optimise), donate_argnums=0, compiler_options=compiler_options())
    images, labels = map(jnp.asarray, batch_of(count, size))
    # Through numpy, which knows no weak types: with them the step would compile twice.
    numbers = (params, optimise.init(params), rest)
    state = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.asarray(np.array(x)), numbers
    )

    def call() -> object:
        nonlocal state
        state, loss = compiled(state, images, labels)
        return jax.block_until_ready((state, loss))[1]

    return call


def eager(name: str, count: int, size: int, *, channels_last: bool) -> Callable[[], object]:
    import torch
    from DCLS.construct.modules import Dcls2d

    from tests.torch_models import torch_model

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_model(name, True).train().to(device(), memory_format=layout)
    named = dict(model.named_parameters())
    positions = [value for key, value in named.items() if key.endswith((".P", ".SIG"))]
    rest = [value for key, value in named.items() if not key.endswith((".P", ".SIG"))]
    groups = [
        {"params": [value for value in rest if value.ndim > 1], "weight_decay": DECAY},
        {"params": [value for value in rest if value.ndim <= 1], "weight_decay": 0.0},
        {"params": positions, "weight_decay": 0.0, "lr": FACTOR * RATE},
    ]
    optimise = torch.optim.AdamW(groups, lr=RATE)
    images, labels = batch_of(count, size)
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device()).contiguous(memory_format=layout)
    y = torch.tensor(labels, device=device())
    layers = [layer for layer in model.modules() if isinstance(layer, Dcls2d)]

    def call() -> None:
        optimise.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimise.step()
        for layer in layers:
            layer.clamp_parameters()

    return waited_for(call)


def row(name: str, count: int, size: int, rounds: int) -> tuple[float, float]:
    """Time one model, print its row, return how many times faster than either form of torch ours is."""
    step = ours(create_model(name, dcls=True), count, size)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    plain = eager(name, count, size, channels_last=False)
    last = eager(name, count, size, channels_last=True)
    seconds = minima({"torch": plain, "channels_last": last, "ours": step}, rounds=rounds)
    plain_ms, last_ms, own = (1e3 * seconds[key] / count for key in ("torch", "channels_last", "ours"))
    times = f"{plain_ms:.3g} | {last_ms:.3g} | {own:.3g} | {plain_ms / own:.2f}x | {last_ms / own:.2f}x | {first:.0f} s"
    print(f"| {name} dcls | {times} |", flush=True)
    return plain_ms / own, last_ms / own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="convnext_tiny,resnet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"Training step, ms per image, batch {options.batch}, {options.size} px, float32; {machine()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    gains = [row(name, options.batch, options.size, options.rounds) for name in options.models.split(",")]
    plain, last = (math.prod(gain) ** (1 / len(gains)) for gain in zip(*gains, strict=True))
    print(f"| geometric mean | | | | {plain:.2f}x | {last:.2f}x | |")


if __name__ == "__main__":
    main()

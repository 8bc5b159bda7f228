"""Every lowering of depthwise convolution side by side, forward and gradient step, beside XLA's own and torch's.

    python benchmarks/depthwise.py [--batch 8] [--kernel 17] [--gradient]

Ratios are `conv_general_dilated` / the lowering: how many times faster it is. torch is timed if it is installed.
"""

import argparse
import importlib.util
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from timing import machine, minima

from dcls_jax import depthwise_conv

METHODS = ("direct", "fft", "shifts", "auto")
SHAPES = ((56, 96), (28, 192), (14, 384), (7, 768))  # the four stages of ConvNeXt-T at 224


def ours(method: str, x: jax.Array, kernel: jax.Array, gradient: bool) -> Callable[[], object]:
    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise_conv(x, kernel, padding=kernel.shape[0] // 2, method=method)

    def step(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, x, kernel)
        return pullback(y)

    compiled = jax.jit(step if gradient else forward)
    return lambda: compiled(x, kernel)


def torchs(x: jax.Array, kernel: jax.Array, gradient: bool) -> Callable[[], object]:
    """torch in its faster layout, channels_last."""
    import numpy as np
    import torch

    image = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    weight = torch.tensor(np.asarray(kernel).transpose(2, 0, 1)[:, None].copy())
    image.requires_grad_(gradient)
    weight.requires_grad_(gradient)

    def call() -> object:
        y = torch.nn.functional.conv2d(image, weight, padding=kernel.shape[0] // 2, groups=kernel.shape[2])
        return torch.autograd.grad(y, (image, weight), y.detach()) if gradient else y

    return lambda: (call(), None)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kernel", type=int, default=17)
    parser.add_argument("--gradient", action="store_true", help="time forward and both gradients")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    columns = [*METHODS, *(["torch"] if importlib.util.find_spec("torch") else [])]
    what = "gradient step" if options.gradient else "forward"
    print(f"{what}, batch {options.batch}, {options.kernel}x{options.kernel}, float32; {machine()}\n")
    print(f"| input | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    gains: dict[str, list[float]] = {column: [] for column in columns}
    for size, channels in SHAPES:
        keys = jax.random.split(jax.random.key(0), 2)
        x = jax.random.normal(keys[0], (options.batch, size, size, channels), jnp.float32)
        kernel = jax.random.normal(keys[1], (options.kernel, options.kernel, channels), jnp.float32)
        candidates = {method: ours(method, x, kernel, options.gradient) for method in METHODS}
        if "torch" in columns:
            candidates["torch"] = torchs(x, kernel, options.gradient)
        times = minima(candidates, rounds=options.rounds)
        for column in columns:
            gains[column].append(times["direct"] / times[column])
        cells = [f"{1e3 * times[c]:.1f} ms ({gains[c][-1]:.0f}x)" for c in columns]
        print(f"| {size}x{size}x{channels} | {' | '.join(cells)} |", flush=True)
    means = [f"{math.prod(gains[c]) ** (1 / len(SHAPES)):.0f}x" for c in columns]
    print(f"| geometric mean | {' | '.join(means)} |")


if __name__ == "__main__":
    main()

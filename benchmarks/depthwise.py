"""Every lowering of depthwise convolution side by side, forward and gradient step, beside XLA's own and torch's.

    python benchmarks/depthwise.py [--batch 8] [--kernel 17] [--gradient] [--dtype float32]
    python benchmarks/depthwise.py --table

Ratios are `conv_general_dilated` / the lowering: how many times faster it is. torch is timed if it is installed, in its
faster layout, channels-last.
--table instead measures what "auto" should take on this platform, and writes it into dcls_jax/fastest.json.
"""

import argparse
import math
from collections.abc import Callable

import fastest
import jax
import jax.numpy as jnp
import torch_rivals
from rich.progress import track
from timing import machine, minima

from dcls_jax import compiler_options, depthwise_conv
from dcls_jax.methods import LOWERINGS, lowering_platform

METHODS = (*LOWERINGS, "auto")
SHAPES = ((56, 96), (28, 192), (14, 384), (7, 768))  # the four stages of ConvNeXt-T at 224


def ours(method: str, x: jax.Array, kernel: jax.Array, gradient: bool) -> Callable[[], object]:
    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise_conv(x, kernel, padding=kernel.shape[0] // 2, method=method)

    def step(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, x, kernel)
        return pullback(y)

    compiled = jax.jit(step if gradient else forward)
    return lambda: compiled(x, kernel)


def table() -> list[dict[str, object]]:
    """Lowerings in the order of their times, forward, within a block, for images and kernels of many sizes."""
    cases = [
        (dtype, stride, size, kernel)
        for dtype in ("float32", "bfloat16")
        for stride in (1, 2)
        for size in (7, 14, 28, 56, 112)
        for kernel in (3, 7, 17, 31, 51)
    ]
    rows = []
    for dtype, stride, size, kernel in track(cases, description=""):
        x = jnp.ones((8, size, size, 64), dtype)
        k = jnp.ones((kernel, kernel, 64), dtype)
        platform = lowering_platform()
        methods = [name for name, it in LOWERINGS.items() if it.local and it.supports(platform, x, (stride, stride))]
        if kernel > 7 and platform == "cpu":
            methods.remove("direct")  # last by far, and takes seconds

        def call(method: str, x: jax.Array = x, k: jax.Array = k, stride: int = stride) -> Callable[[], object]:
            def block(x: jax.Array, k: jax.Array) -> jax.Array:
                # Between operations as models have them, and one convolution after the other: XLA fuses a lowering in
                # plain JAX with what surrounds it, which may be a gain, or make it compute the same again and again.
                y = depthwise_conv(jax.nn.relu(x), k, padding=len(k) // 2, stride=stride, method=method)
                y = depthwise_conv(jax.nn.relu(y), k, padding=len(k) // 2, method=method)
                return y - y.mean(-1, keepdims=True)

            compiled = jax.jit(block, compiler_options=compiler_options())
            return lambda: compiled(x, k)

        times = minima({method: call(method) for method in methods}, rounds=3, pause=0)
        rows.append(
            {
                "dtype": dtype,
                "stride": stride,
                "size": size,
                "kernel": kernel,
                "order": sorted(times, key=times.__getitem__),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kernel", type=int, default=17)
    parser.add_argument("--gradient", action="store_true", help="time forward and both gradients")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--table", action="store_true", help="measure and write what `auto` takes")
    options = parser.parse_args()
    if options.table:
        fastest.write(lowering_platform(), table())
        return
    x = jax.ShapeDtypeStruct((1, 1, 1, 1), options.dtype)
    methods = [it for it in METHODS if it == "auto" or LOWERINGS[it].supports(lowering_platform(), x, (1, 1))]
    columns = [*methods, *(["torch"] if torch_rivals.there_is_torch() else [])]
    what = "gradient step" if options.gradient else "forward"
    print(f"{what}, batch {options.batch}, {options.kernel}x{options.kernel}, {options.dtype}; {machine()}\n")
    print(f"| input | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    gains: dict[str, list[float]] = {column: [] for column in columns}
    for size, channels in SHAPES:
        keys = jax.random.split(jax.random.key(0), 2)
        x = jax.random.normal(keys[0], (options.batch, size, size, channels), options.dtype)
        kernel = jax.random.normal(keys[1], (options.kernel, options.kernel, channels), options.dtype)
        candidates = {method: ours(method, x, kernel, options.gradient) for method in methods}
        if "torch" in columns:
            candidates["torch"] = torch_rivals.waited_for(torch_rivals.depthwise([x], [kernel], 1, options.gradient))
        times = minima(candidates, rounds=options.rounds)
        for column in columns:
            gains[column].append(times["direct"] / times[column])
        cells = [f"{1e3 * times[c]:.1f} ms ({gains[c][-1]:.0f}x)" for c in columns]
        print(f"| {size}x{size}x{channels} | {' | '.join(cells)} |", flush=True)
    means = [f"{math.prod(gains[c]) ** (1 / len(SHAPES)):.0f}x" for c in columns]
    print(f"| geometric mean | {' | '.join(means)} |")


if __name__ == "__main__":
    main()

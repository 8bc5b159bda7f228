"""Depthwise convolution on a TPU v5e that is not there: the cycles of XLA's own and of Pallas, by what is compiled.

    pip install '.[aot]'; python benchmarks/tpu_cycles.py [--batch 64] [--dtype bfloat16] [--gradient | --products]

Forward, or the gradient to the kernel. XLA's own, and what stands around a kernel: the compiler's estimates. Pallas:
the instruction bundles of its innermost loops, a cycle each, times how often they run; what is fetched meanwhile and
stalls are not in it. Nothing runs.
--products: what matrix units take instead, by the compiler's estimates, between layers as models have them: bands, and
matrices of whole images, made beforehand.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ahead
import jax
from jax.sharding import NamedSharding, PartitionSpec

from dcls_jax import depthwise_conv, pallas
from dcls_jax.lowerings import times_matrices

Case = tuple[int, int, int, int]
# Side, channels, kernel, stride: ConvNeXt's with DCLS and as published, and FastViT's.
CASES: tuple[Case, ...] = (
    *(
        (side, channels, kernel, 1)
        for kernel in (17, 7)
        for side, channels in ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    (56, 128, 7, 2),
    (56, 64, 3, 1),
    (112, 64, 3, 2),
)
COLUMNS = ("input", "kernel, stride", "direct", "pallas", "of it, around the kernel", "direct/pallas")
LARGEST = 14  # side of images whose matrices are not too large
INNERMOST = 3  # in the loops over programs, rows of the output, rows of the kernel


def convolution(method: str, kernel: int, stride: int, gradient: bool) -> Callable[..., Any]:
    def forward(x: jax.Array, cells: jax.Array) -> jax.Array:
        return depthwise_conv(x, cells, padding=kernel // 2, stride=stride, method=method)  # type: ignore[arg-type]

    def to_kernel(x: jax.Array, cells: jax.Array, y: jax.Array) -> jax.Array:
        return jax.vjp(lambda cells: forward(x, cells), cells)[1](y)[0]

    return to_kernel if gradient else forward


def compiled(method: str, case: Case, batch: int, dtype: str, gradient: bool) -> int:
    """Compile it; the compiler's estimate of its operations' cycles, but of kernels."""
    side, channels, kernel, stride = case
    out = -(-side // stride)
    shapes = [(batch, side, side, channels), (kernel, kernel, channels), (batch, out, out, channels)]
    return estimate(convolution(method, kernel, stride, gradient), shapes[: 3 if gradient else 2], dtype)


def estimate(function: Callable[..., jax.Array], shapes: Sequence[tuple[int, ...]], dtype: str) -> int:
    """Compile a function of arrays for a TPU; its cycles, by the compiler."""
    jax.config.update("jax_platforms", "cpu")  # of what is here
    there = NamedSharding(ahead.mesh_of("tpu"), PartitionSpec())
    arguments = (jax.ShapeDtypeStruct(shape, dtype, sharding=there) for shape in shapes)
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return sum(map(int, re.findall(r'estimated_cycles":"(\d+)"', text)))


def in_between(convolve: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Between layers whose images lie as XLA likes."""

    def layers(x: jax.Array, cells: jax.Array, weight: jax.Array) -> jax.Array:
        y = convolve(x @ weight, cells)
        return (y - y.mean(-1, keepdims=True)) @ weight

    return layers


def products(case: Case, batch: int, dtype: str) -> list[str]:
    """Cycles of bands and of kept matrices, less those of the layers around them."""
    side, channels, kernel, _ = case

    def cycles(convolve: Callable[[jax.Array, jax.Array], jax.Array], *cells: int) -> int:
        return estimate(in_between(convolve), [(batch, side, side, channels), cells, (channels, channels)], dtype)

    around = cycles(lambda x, cells: x, 1)
    banded = cycles(convolution("bands", kernel, 1, gradient=False), kernel, kernel, channels)
    if side > LARGEST:
        return [f"{banded - around:,}", ""]
    kept = cycles(lambda x, cells: times_matrices(x, cells, (side, side)), channels, side**2, side**2)
    return [f"{banded - around:,}", f"{kept - around:,}"]


def print_products(batch: int, dtype: str) -> None:
    print("| input | kernel | bands | kept matrices |\n|---|---|---|---|")
    for side, channels, kernel, stride in CASES:
        if stride == 1 and kernel > 3:
            cells = " | ".join(products((side, channels, kernel, stride), batch, dtype))
            print(f"| {side}x{side}x{channels} | {kernel}x{kernel} | {cells} |", flush=True)


def bundles(schedule: str) -> int:
    """Of the innermost loops: a line has a mark for each loop that it is in."""
    marks = re.findall(r"^ *0x[0-9a-f]+ *(?:[A-Z]{2})? *: *((?:> *)*)\{", schedule, re.MULTILINE)
    return sum(mark.count(">") == INNERMOST for mark in marks)


def turns(case: Case, batch: int) -> int:
    """How often the innermost loops run: programs, times pairs of a row of the output and one of the kernel."""
    side, channels, kernel, stride = case
    out, pad = -(-side // stride), kernel // 2
    pairs = sum(0 <= row * stride + i - pad < side for row in range(out) for i in range(kernel))
    return -(-batch // pallas.SUBLANES) * -(-channels // pallas.LANES) * pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--gradient", action="store_true", help="to the kernel")
    what.add_argument("--products", action="store_true", help="on matrix units")
    options = parser.parse_args()
    if options.products:
        print_products(options.batch, options.dtype)
        return
    of = options.batch, options.dtype, options.gradient
    # A process for XLA's own, since what the compiler writes out of it takes it minutes.
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as other:
        directs = [other.submit(compiled, "direct", case, *of) for case in CASES]
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for case, direct in zip(CASES, directs, strict=True):
            around = compiled("pallas", case, *of)
            (schedule,) = Path(folder).glob(
                f"*{'_kernel_gradient' if options.gradient else '_depthwise'}.*-final_bundles.txt"
            )
            cycles = bundles(schedule.read_text()) * turns(case, options.batch) + around
            for path in Path(folder).iterdir():
                path.unlink()
            (side, channels, kernel, stride), own = case, direct.result()
            what = f"{side}x{side}x{channels} | {kernel}x{kernel}, {stride}"
            print(f"| {what} | {own:,} | {cycles:,} | {around:,} | {own / cycles:.1f}x |", flush=True)


if __name__ == "__main__":
    main()

"""Depthwise convolution on a TPU's vector units, in Pallas.

A register holds one pixel of eight images and 128 channels, as XLA lays images out there: what a cell of the kernel
meets is a register, wherever the cell is, and no multiplication is by padding. All arithmetic is in float32.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jax import Array, lax
from jax.core import ShapedArray  # of a ShapeDtypeStruct it is asked over which axes of a `shard_map` it varies

from dcls_jax.lowerings import Pads, Strides, reachable
from dcls_jax.padding import output_size

with epy.lazy_imports():  # nobody without a TPU needs them
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
REGISTERS = 16  # that the sums of a strip of pixels take, of a core's 64
WIDEST = 256  # pixels: the program has a line for each pair of a pixel and a cell along a row
BLOCK = 2**23  # bytes of images that a program holds, twice: the next are on their way
MEMORY = 2**26  # bytes that a program may take, of a core's 128 MiB


class _Plan(NamedTuple):
    """A convolution of images of a height and width, and how many rows of its output a program makes."""

    size: tuple[int, int]
    cells: tuple[int, int]
    pads: Pads
    strides: Strides
    out: tuple[int, int]
    rows: int

    @property
    def held(self) -> int:
        """Rows of images that a program meets, at most."""
        return (self.rows - 1) * self.strides[0] + self.cells[0]

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.out[0], self.rows)

    def start(self, block: Any) -> Any:
        """The first row of images that a program holds."""
        return jnp.maximum(0, block * self.rows * self.strides[0] - self.pads[0][0])

    def strips(self) -> Iterator[range]:
        """Neighbouring columns of the output, as many as there are registers for."""
        width = pl.cdiv(self.out[1], pl.cdiv(self.out[1], REGISTERS))
        for first in range(0, self.out[1], width):
            yield range(first, min(first + width, self.out[1]))

    def pairs(self, columns: range) -> Iterator[tuple[int, int, int]]:
        """Column of the output, column of the kernel, and the column of the images where they meet."""
        for j in range(self.cells[1]):
            for n in columns:
                if 0 <= (met := n * self.strides[1] + j - self.pads[1][0]) < self.size[1]:
                    yield n, j, met


def supports(platform: str, x: Any, strides: Strides) -> bool:
    """Whether images of this dtype (float32, bfloat16) and width are convolved here."""
    return platform == "tpu" and x.dtype in (jnp.float32, jnp.bfloat16) and x.shape[2] <= WIDEST


def depthwise(x: Array, kernel: Array, pads: Pads, strides: Strides, *, interpret: bool = False) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C); `interpret` anywhere, without a TPU."""
    kernel, pads = reachable(x, kernel, pads)
    plan = _planned(x, kernel.shape[:2], pads, strides)
    return _depthwise(x, kernel, plan, interpret)


@partial(jax.jit, static_argnames=("plan", "interpret"))
def _depthwise(x: Array, kernel: Array, plan: _Plan, interpret: bool) -> Array:
    (batch, *_, channels), lanes = x.shape, min(x.shape[3], LANES)
    y = pl.pallas_call(
        partial(_convolve, plan),
        grid=(pl.cdiv(batch, SUBLANES), pl.cdiv(channels, lanes), plan.blocks),
        in_specs=[
            _images(plan, batch, channels, lambda b, c, r: (b, c, r)),
            pl.BlockSpec((*plan.cells, lanes), lambda b, c, r: (0, 0, c)),
        ],
        out_specs=_outputs(plan, lanes, lambda b, c, r: (b, c, r)),
        out_shape=ShapedArray((*plan.out, batch, channels), x.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
        interpret=interpret,
    )(_images_inside(x), kernel.astype(jnp.float32))
    return y.transpose(2, 0, 1, 3)


def kernel_gradient(
    x: Array, grad: Array, pads: Pads, strides: Strides, size: tuple[int, int], *, interpret: bool = False
) -> Array:
    """x (B, H, W, C), grad (B, H', W', C) -> (kh, kw, C), summed in float32 over images and pixels."""
    return _kernel_gradient(x, grad, _planned(x, size, pads, strides), interpret)


@partial(jax.jit, static_argnames=("plan", "interpret"))
def _kernel_gradient(x: Array, grad: Array, plan: _Plan, interpret: bool) -> Array:
    lanes, more = min(x.shape[3], LANES), -x.shape[0] % SUBLANES
    x, grad = (jnp.pad(each, ((0, more), (0, 0), (0, 0), (0, 0))) for each in (x, grad))  # beyond an array is anything
    batch, *_, channels = x.shape
    kernel = pl.pallas_call(
        partial(_correlate, plan),
        grid=(pl.cdiv(channels, lanes), batch // SUBLANES, plan.blocks),
        in_specs=[
            _images(plan, batch, channels, lambda c, b, r: (b, c, r)),
            _outputs(plan, lanes, lambda c, b, r: (b, c, r)),
        ],
        out_specs=pl.BlockSpec((*plan.cells, lanes), lambda c, b, r: (0, 0, c)),
        out_shape=ShapedArray((*plan.cells, channels), jnp.float32),
        scratch_shapes=[pltpu.VMEM((*plan.cells, SUBLANES, lanes), jnp.float32)],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
        interpret=interpret,
    )(_images_inside(x), _images_inside(grad))
    return kernel.astype(x.dtype)


def _convolve(plan: _Plan, x_ref: Any, kernel_ref: Any, y_ref: Any) -> None:
    """y[m, n] = sum over cells (i, j) of x[m s + i - top, n s + j - left] k[i, j], a row m at a time."""
    block = pl.program_id(2)
    first, start = block * plan.rows, plan.start(block)

    def row(m: Any, _: None) -> None:
        met = (first + m) * plan.strides[0] - plan.pads[0][0]  # row of the images that the first cell meets
        for columns in plan.strips():

            def add(i: Any, sums: dict[int, Array], columns: range = columns) -> dict[int, Array]:
                pixel, cell = _pixels(x_ref, met + i - start), partial(_cell, kernel_ref, i)
                for n, j, column in plan.pairs(columns):
                    sums[n] += pixel(column) * cell(j)
                return sums

            zeros = {n: jnp.zeros(y_ref.shape[2:], jnp.float32) for n in columns}
            sums = lax.fori_loop(jnp.maximum(0, -met), jnp.minimum(plan.cells[0], plan.size[0] - met), add, zeros)
            for n, total in sums.items():
                y_ref[m, n] = total.astype(y_ref.dtype)

    lax.fori_loop(0, jnp.minimum(plan.rows, plan.out[0] - first), row, None)


def _correlate(plan: _Plan, x_ref: Any, grad_ref: Any, kernel_ref: Any, sums_ref: Any) -> None:
    """k[i, j] = sum over images and outputs (m, n) of x[m s + i - top, n s + j - left] y[m, n]."""
    image, block = pl.program_id(1), pl.program_id(2)
    first, start, (down, _), (top, _) = block * plan.rows, plan.start(block), plan.strides, plan.pads[0]

    @pl.when((image == 0) & (block == 0))
    def begin() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)

    def row_of_cells(i: Any, _: None) -> None:
        def add(m: Any, sums: list[Array]) -> list[Array]:
            pixel, grad = _pixels(x_ref, (first + m) * down + i - top - start), _pixels(grad_ref, m)
            for columns in plan.strips():
                for n, j, column in plan.pairs(columns):
                    sums[j] += pixel(column) * grad(n)
            return sums

        # Rows m of the output, of this block, whose row m s + i - top is one of the images.
        above = jnp.maximum(0, pl.cdiv(top - i, down) - first)
        below = jnp.minimum(jnp.minimum(plan.rows, plan.out[0] - first), pl.cdiv(plan.size[0] + top - i, down) - first)
        zeros = [jnp.zeros(sums_ref.shape[2:], jnp.float32)] * plan.cells[1]
        for j, total in enumerate(lax.fori_loop(above, below, add, zeros)):
            sums_ref[i, j] += total

    lax.fori_loop(0, plan.cells[0], row_of_cells, None)

    @pl.when((image == pl.num_programs(1) - 1) & (block == pl.num_programs(2) - 1))
    def end() -> None:
        kernel_ref[...] = sums_ref[...].sum(2)


def _pixels(ref: Any, row: Any) -> Callable[[int], Array]:
    """Those of a row, (8, lanes), by their column; each is read once."""
    return cache(lambda column: ref[row, column].astype(jnp.float32))


def _cell(ref: Any, row: Any, column: int) -> Array:
    return ref[row, pl.ds(column, 1)]


def _planned(x: Array, cells: tuple[int, ...], pads: Pads, strides: Strides) -> _Plan:
    """Blocks of as many rows as may be held, all alike."""
    _, height, width, _ = x.shape
    out_height, out_width = output_size((height, width), cells, pads, strides)
    a_row = width * SUBLANES * LANES * x.dtype.itemsize
    most = max(1, (BLOCK // a_row - cells[0]) // strides[0] + 1)
    rows = pl.cdiv(out_height, pl.cdiv(out_height, most))
    return _Plan((height, width), (cells[0], cells[1]), pads, strides, (out_height, out_width), rows)


def _images_inside(x: Array) -> Array:
    """(B, H, W, C) -> (H, W, B, C)"""
    return x.transpose(1, 2, 0, 3)


def _images(plan: _Plan, batch: int, channels: int, where: Any) -> Any:
    """Blocks of images (H, W, B, C), which overlap: of images, channels and rows as `where` says."""
    lanes = min(channels, LANES)
    last = max(0, (plan.blocks - 1) * plan.rows * plan.strides[0] - plan.pads[0][0])

    def first(*program: Any) -> tuple[Any, ...]:
        image, channel, block = where(*program)
        return plan.start(block), 0, image * SUBLANES, channel * LANES if channels > LANES else 0

    return pl.BlockSpec(
        (
            pl.Element(plan.held, (0, max(0, last + plan.held - plan.size[0]))),
            pl.Element(plan.size[1]),
            pl.Element(SUBLANES, (0, -batch % SUBLANES)),
            pl.Element(lanes, (0, -channels % lanes)),
        ),
        first,
    )


def _outputs(plan: _Plan, lanes: int, where: Any) -> Any:
    """Blocks of outputs (H', W', B, C): of images, channels and rows as `where` says."""

    def place(*program: Any) -> tuple[Any, ...]:
        image, channel, block = where(*program)
        return block, 0, image, channel

    return pl.BlockSpec((plan.rows, plan.out[1], SUBLANES, lanes), place)

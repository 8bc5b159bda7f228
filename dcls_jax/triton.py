"""Depthwise convolution on a GPU in Pallas, compiled by Triton: where the native library and NVRTC are not.

A program has a block of channels and of neighbouring columns, and sums for several rows of them in registers: a pixel,
once read, meets every row of the output that it is part of. All arithmetic is in float32.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import cache, partial, reduce
from operator import and_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jax import Array, lax
from jax.core import ShapedArray  # of a ShapeDtypeStruct it is asked over which axes of a `shard_map` it varies

from dcls_jax.lowerings import Pads, Strides, reachable
from dcls_jax.padding import output_size

with epy.lazy_imports():  # nobody without a GPU needs them
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plt

CHANNELS, COLUMNS = 32, 8  # of a program, at most; Triton's arrays have powers of two
ROWS = 16, 8, 4, 2  # of a program, at most: as many as leave enough programs
PROGRAMS = 1024  # that keep a large GPU of today busy
MultiplyAdd = Callable[[Array, Array, Array], Array]


class _Plan(NamedTuple):
    """A convolution of images (B, H, W, C), and how much of its output a program makes."""

    images: tuple[int, int, int, int]
    cells: tuple[int, int]
    pads: Pads
    strides: Strides
    out: tuple[int, int]
    rows: int
    columns: int
    channels: int

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Of rows, columns and channels."""
        return (
            pl.cdiv(self.out[0], self.rows),
            pl.cdiv(self.out[1], self.columns),
            pl.cdiv(self.images[3], self.channels),
        )

    def first(self, block: Any) -> Any:
        """Row of the output at which a block of rows begins."""
        return 0 if self.blocks[0] == 1 else block * self.rows

    def met(self, first: Any) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
        """Each row of an image that a block of rows meets, and by which pairs of its own and the kernel's rows."""
        down, top = self.strides[0], self.pads[0][0]
        for row in range((self.rows - 1) * down + self.cells[0]):
            met = first * down + row - top
            if isinstance(met, int) and not 0 <= met < self.images[1]:
                continue  # known to be padding; else zeros are read
            pairs = ((m, row - m * down) for m in range(self.rows))
            yield met, [(m, i) for m, i in pairs if 0 <= i < self.cells[0]]


def supports(platform: str, x: Any, strides: Strides) -> bool:
    """Whether images of this dtype (float32, bfloat16) are convolved, by GPUs of capability 8.0 (A100) and above."""
    return platform == "cuda" and x.dtype in (jnp.float32, jnp.bfloat16) and _triton_is_there()


@cache
def _triton_is_there() -> bool:
    """In this JAX, which means to give it up, and for the GPUs that are here, if any: programs are for others too."""
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return False
    gpus = jax.local_devices() if jax.default_backend() == "gpu" else []
    return all(float(getattr(gpu, "compute_capability", 8.0)) >= 8 for gpu in gpus)


def depthwise(x: Array, kernel: Array, pads: Pads, strides: Strides, *, interpret: bool = False) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C); `interpret` anywhere, without a GPU."""
    kernel, pads = reachable(x, kernel, pads)
    plan = _planned(x, kernel.shape[:2], pads, strides)
    rows, columns, channels = plan.blocks
    y = ShapedArray((len(x), *plan.out, x.shape[3]), x.dtype)
    return _call(_convolve, plan, (len(x) * rows, columns, channels), y, interpret)(x, kernel.astype(jnp.float32))


def kernel_gradient(
    x: Array, grad: Array, pads: Pads, strides: Strides, size: tuple[int, int], *, interpret: bool = False
) -> Array:
    """x (B, H, W, C), grad (B, H', W', C) -> (kh, kw, C), summed in float32 over images and pixels."""
    plan = _planned(x, size, pads, strides)
    rows, columns, channels = plan.blocks
    splits = min(pl.cdiv(PROGRAMS, size[1] * channels), len(x) * rows * columns)
    parts = ShapedArray((splits, *size, x.shape[3]), jnp.float32)
    return _call(_correlate, plan, (splits, size[1], channels), parts, interpret)(x, grad).sum(0).astype(x.dtype)


def _call(
    program: Callable[..., None], plan: _Plan, grid: tuple[int, int, int], out: Any, interpret: bool
) -> Callable[..., Array]:
    """Each program sees all of every array, and is a block of 128 threads."""
    multiply_add = _plain_multiply_add if interpret else _multiply_add
    options = plt.CompilerParams(num_warps=4)
    program = partial(program, plan, multiply_add)
    return pl.pallas_call(program, out, grid=grid, compiler_params=options, interpret=interpret)


def _convolve(plan: _Plan, multiply_add: MultiplyAdd, x_ref: Any, kernel_ref: Any, y_ref: Any) -> None:
    """y[m, n] = sum over cells (i, j) of x[m s + i - top, n s + j - left] k[i, j]."""
    image, block = _divided(pl.program_id(0), plan.blocks[0])
    first, columns, channels = plan.first(block), _columns(plan, pl.program_id(1)), _channels(plan, pl.program_id(2))

    def add(j: Any, sums: list[Array]) -> list[Array]:
        sums = list(sums)
        cells = [_read(kernel_ref, i, j, channels) for i in range(plan.cells[0])]
        for row, pairs in plan.met(first):
            pixels = _read(x_ref, image, row, _met(plan, columns, j), channels)
            for m, i in pairs:
                sums[m] = multiply_add(pixels, cells[i], sums[m])
        return sums

    zeros = [jnp.zeros((plan.columns, plan.channels), jnp.float32)] * plan.rows
    for m, total in enumerate(lax.fori_loop(0, plan.cells[1], add, zeros)):
        _write(y_ref, total, image, first + m, columns, channels)


def _correlate(plan: _Plan, multiply_add: MultiplyAdd, x_ref: Any, grad_ref: Any, sums_ref: Any) -> None:
    """k[i, j] = sum over images and outputs (m, n) of x[m s + i - top, n s + j - left] y[m, n], for one j."""
    split, j, channels = pl.program_id(0), pl.program_id(1), _channels(plan, pl.program_id(2))
    down, across, _ = plan.blocks
    blocks, splits = plan.images[0] * down * across, pl.num_programs(0)

    def add(turn: Any, sums: list[Array]) -> list[Array]:
        sums = list(sums)
        image, block = _divided(split + turn * splits, down * across)
        block, column = _divided(block, across)
        first, columns = plan.first(block), _columns(plan, column)
        grads = [_read(grad_ref, image, first + m, columns, channels) for m in range(plan.rows)]
        for row, pairs in plan.met(first):
            pixels = _read(x_ref, image, row, _met(plan, columns, j), channels)
            for m, i in pairs:
                sums[i] = multiply_add(pixels, grads[m], sums[i])
        return sums

    zeros = [jnp.zeros((plan.columns, plan.channels), jnp.float32)] * plan.cells[0]
    turns, _ = _divided(blocks - split + splits - 1, splits)
    for i, total in enumerate(lax.fori_loop(0, turns, add, zeros)):
        _write(sums_ref, total.sum(0, keepdims=True), split, i, j, channels)


def _met(plan: _Plan, columns: Array, j: Any) -> Array:
    """Columns of an image that a column of the kernel meets from columns of the output."""
    return columns * plan.strides[1] + j - plan.pads[1][0]


def _columns(plan: _Plan, block: Any) -> Array:
    return (block * plan.columns + jnp.arange(plan.columns, dtype=jnp.int32))[:, None]


def _channels(plan: _Plan, block: Any) -> Array:
    return (block * plan.channels + jnp.arange(plan.channels, dtype=jnp.int32))[None]


def _read(ref: Any, *place: Any) -> Array:
    """What is at a place, in float32; zeros beyond the array."""
    return plt.load(ref.at[place], mask=_inside(ref, place), other=0).astype(jnp.float32)


def _write(ref: Any, value: Array, *place: Any) -> None:
    plt.store(ref.at[place], value.astype(ref.dtype), mask=_inside(ref, place))


def _inside(ref: Any, place: tuple[Any, ...]) -> Array:
    """Which indices are the array's."""
    inside = [(index >= 0) & (index < size) for index, size in zip(place, ref.shape, strict=True)]
    return jnp.broadcast_to(reduce(and_, inside), jnp.broadcast_shapes(*map(jnp.shape, place)))


def _multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a b + c in one instruction, which Triton makes of no product and sum that XLA hands to it."""
    operands, instruction = [a, jnp.broadcast_to(b, a.shape), c], "fma.rn.f32 $0, $1, $2, $3;"
    result = [jax.ShapeDtypeStruct(a.shape, jnp.float32)]
    return plt.elementwise_inline_asm(
        instruction, args=operands, constraints="=f,f,f,f", pack=1, result_shape_dtypes=result
    )[0]


def _plain_multiply_add(a: Array, b: Array, c: Array) -> Array:
    return a * b + c


def _divided(number: Any, by: Any) -> tuple[Any, Any]:
    """Quotient and remainder of what is not negative."""
    by = jnp.asarray(by, number.dtype)
    return lax.div(number, by), lax.rem(number, by)


def _planned(x: Array, cells: tuple[int, ...], pads: Pads, strides: Strides) -> _Plan:
    batch, height, width, depth = x.shape
    out_height, out_width = output_size((height, width), cells, pads, strides)
    columns, channels = min(COLUMNS, pl.next_power_of_2(out_width)), min(CHANNELS, pl.next_power_of_2(depth))
    size, out = (batch, height, width, depth), (out_height, out_width)
    for most in ROWS:
        rows = pl.cdiv(out_height, pl.cdiv(out_height, most))
        plan = _Plan(size, (cells[0], cells[1]), pads, strides, out, rows, columns, channels)
        if batch * math.prod(plan.blocks) >= PROGRAMS:
            break
    return plan

"""Depthwise convolution on a TPU's vector units, in Pallas.

A program holds a block of rows of one image in float32, a channel in each lane. Pixels a stride apart are brought side
by side first, so that what a cell of the kernel meets is a plain slice; a sum stays in registers.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jax import Array, lax

from dcls_jax.lowerings import Pads, Strides, reachable
from dcls_jax.padding import output_size

with epy.lazy_imports():  # nobody without a TPU needs them
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
REGISTERS = 16  # that a sum takes, of a core's 64
WIDEST = 512  # pixels; a row of more would not fit the registers
BLOCK = 2**21  # bytes of an image that a program holds
MEMORY = 2**26  # bytes that a program may take, of a core's 128 MiB


class _Blocks(NamedTuple):
    """A convolution's cells and strides, rows and columns of its output, rows of a block, and those of a sum."""

    cells: tuple[int, int]
    strides: Strides
    height: int
    width: int
    rows: int
    at_once: int

    @property
    def number(self) -> int:
        return pl.cdiv(self.height, self.rows)

    def reach(self, axis: int) -> int:
        """How many pixels of one phase beyond its own an output's last cell is."""
        return (self.cells[axis] - 1) // self.strides[axis]


def supports(platform: str, x: Any, strides: Strides) -> bool:
    """Whether images of this dtype (float32, bfloat16) and width are convolved here."""
    return platform == "tpu" and x.dtype in (jnp.float32, jnp.bfloat16) and x.shape[2] <= WIDEST


def depthwise(x: Array, kernel: Array, pads: Pads, strides: Strides, *, interpret: bool = False) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C); `interpret` anywhere, without a TPU."""
    kernel, pads = reachable(x, kernel, pads)
    blocks, (batch, *_, channels) = _divided(x, kernel.shape[:2], pads, strides), x.shape
    phases, lanes = _phases(x, blocks, pads), min(channels, LANES)
    return pl.pallas_call(
        partial(_convolve, blocks),
        grid=(batch, pl.cdiv(channels, lanes), blocks.number),
        in_specs=[
            _block_of(phases, blocks, lanes, lambda b, c, r: (b, r, c)),
            pl.BlockSpec((*kernel.shape[:2], lanes), lambda b, c, r: (0, 0, c)),
        ],
        out_specs=pl.BlockSpec((1, blocks.rows, blocks.width, lanes), lambda b, c, r: (b, r, 0, c)),
        out_shape=jax.ShapeDtypeStruct((batch, blocks.height, blocks.width, channels), x.dtype),
        scratch_shapes=[pltpu.VMEM(_held(phases, blocks, lanes), jnp.float32)],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
        interpret=interpret,
    )(phases, kernel.astype(jnp.float32))


def kernel_gradient(
    x: Array, grad: Array, pads: Pads, strides: Strides, size: tuple[int, int], *, interpret: bool = False
) -> Array:
    """x (B, H, W, C), grad (B, H', W', C) -> (kh, kw, C), summed in float32 over images and blocks."""
    blocks, (batch, *_, channels) = _divided(x, size, pads, strides), x.shape
    phases, lanes = _phases(x, blocks, pads), min(channels, LANES)
    below = blocks.number * blocks.rows - blocks.height
    grad = jnp.pad(grad, ((0, 0), (0, below), (0, 0), (0, 0)))  # what lies beyond an array is anything
    kernel = pl.pallas_call(
        partial(_correlate, blocks),
        grid=(pl.cdiv(channels, lanes), batch, blocks.number),
        in_specs=[
            _block_of(phases, blocks, lanes, lambda c, b, r: (b, r, c)),
            pl.BlockSpec((1, blocks.rows, blocks.width, lanes), lambda c, b, r: (b, r, 0, c)),
        ],
        out_specs=pl.BlockSpec((*size, lanes), lambda c, b, r: (0, 0, c)),
        out_shape=jax.ShapeDtypeStruct((*size, channels), jnp.float32),
        scratch_shapes=[
            pltpu.VMEM(_held(phases, blocks, lanes), jnp.float32),
            pltpu.VMEM((blocks.rows, blocks.width, lanes), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
        interpret=interpret,
    )(phases, grad)
    return kernel.astype(x.dtype)


def _convolve(blocks: _Blocks, x_ref: Any, kernel_ref: Any, y_ref: Any, pixels: Any) -> None:
    """y[m, n] = sum over cells (i, j) of x[m s + i, n s + j] k[i, j], `at_once` rows m at a time."""
    pixels[...] = x_ref[0].astype(jnp.float32)

    def some_rows(n: Any, _: None) -> None:
        first = n * blocks.at_once

        def add_row(i: Any, total: Array) -> Array:
            for j in range(blocks.cells[1]):
                total += _met(pixels, blocks, first, i, j) * kernel_ref[i, pl.ds(j, 1)]
            return total

        zeros = jnp.zeros((blocks.at_once, *y_ref.shape[-2:]), jnp.float32)
        total = lax.fori_loop(0, blocks.cells[0], add_row, zeros)
        y_ref[0, pl.ds(first, blocks.at_once)] = total.astype(y_ref.dtype)

    lax.fori_loop(0, blocks.rows // blocks.at_once, some_rows, None)


def _correlate(blocks: _Blocks, x_ref: Any, grad_ref: Any, kernel_ref: Any, pixels: Any, grads: Any) -> None:
    """k[i, j] = sum over outputs (m, n) of x[m s + i, n s + j] y[m, n], added up from program to program."""

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        kernel_ref[...] = jnp.zeros_like(kernel_ref)

    pixels[...] = x_ref[0].astype(jnp.float32)
    grads[...] = grad_ref[0].astype(jnp.float32)

    def row(i: Any, _: None) -> None:
        for j in range(blocks.cells[1]):

            def add(n: Any, total: Array, j: int = j) -> Array:
                first = n * blocks.at_once
                return total + _met(pixels, blocks, first, i, j) * grads[pl.ds(first, blocks.at_once)]

            zeros = jnp.zeros((blocks.at_once, *grad_ref.shape[-2:]), jnp.float32)
            total = lax.fori_loop(0, blocks.rows // blocks.at_once, add, zeros)
            kernel_ref[i, pl.ds(j, 1)] += total.sum(0).sum(0, keepdims=True)

    lax.fori_loop(0, blocks.cells[0], row, None)


def _met(pixels: Any, blocks: _Blocks, first: Any, i: Any, j: int) -> Array:
    """What cell (i, j) meets for `at_once` rows of the output from `first` on: (at_once, W', lanes)."""
    down, along = blocks.strides
    rows, columns = pl.ds(first + lax.div(i, down), blocks.at_once), pl.ds(j // along, blocks.width)
    return pixels[lax.rem(i, down), j % along, rows, columns]


def _divided(x: Array, cells: tuple[int, ...], pads: Pads, strides: Strides) -> _Blocks:
    """Blocks of as many rows as may be held, all alike."""
    height, width = output_size(x.shape[1:3], cells, pads, strides)
    at_once = min(height, max(1, REGISTERS // pl.cdiv(width, SUBLANES)))
    whole = _Blocks((cells[0], cells[1]), strides, height, width, height, at_once)
    a_row = strides[0] * strides[1] * _up(width + whole.reach(1), SUBLANES) * LANES * 4
    most = max(at_once, BLOCK // a_row - whole.reach(0))
    return whole._replace(rows=_up(pl.cdiv(height, pl.cdiv(height, most)), at_once))


def _phases(x: Array, blocks: _Blocks, pads: Pads) -> Array:
    """x (B, H, W, C), padded -> (B, s, s, rows, columns, C): pixels a stride apart side by side."""
    (down, along), ((top, _), (left, _)) = blocks.strides, pads
    rows, columns = blocks.number * blocks.rows + blocks.reach(0), blocks.width + blocks.reach(1)
    below, right = rows * down - top - x.shape[1], columns * along - left - x.shape[2]
    x = lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), (top, below, 0), (left, right, 0), (0, 0, 0)))
    x = x.reshape(x.shape[0], rows, down, columns, along, x.shape[3])
    return x.transpose(0, 2, 4, 1, 3, 5)


def _held(phases: Array, blocks: _Blocks, lanes: int) -> tuple[int, ...]:
    """The shape of what a program holds of an image: its rows, and what the kernel reaches below."""
    _, down, along, _, columns, _ = phases.shape
    return down, along, blocks.rows + blocks.reach(0), columns, lanes


def _block_of(phases: Array, blocks: _Blocks, lanes: int, where: Any) -> Any:
    """Blocks of images, which overlap: of the image, the block and the channels that `where` says."""
    held, beyond = _held(phases, blocks, lanes), -phases.shape[-1] % lanes

    def first(*program: Any) -> tuple[Any, ...]:
        image, row, channel = where(*program)
        return image, 0, 0, row * blocks.rows, 0, channel * lanes if phases.shape[-1] > lanes else 0

    shape = [pl.Element(size) for size in (1, *held[:-1])]
    return pl.BlockSpec((*shape, pl.Element(lanes, (0, beyond))), first)


def _up(number: int, multiple: int) -> int:
    return pl.cdiv(number, multiple) * multiple

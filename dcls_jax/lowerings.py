"""Exact lowerings of depthwise convolution in plain JAX; `benchmarks/depthwise.py` times them side by side.

Each takes x (B, H, W, C), kernel (kh, kw, C), explicit padding and strides, and returns (B, H', W', C) in x's dtype.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dcls_jax.arrays import at_least_float32
from dcls_jax.padding import output_size

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]

FUSED_CELLS = 64  # kernels up to this many cells are fused whole by `shifts`; XLA's CPU compiler gives up above


def direct(x: Array, kernel: Array, pads: Pads, strides: Strides) -> Array:
    """XLA's own."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        strides,
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def fft(x: Array, kernel: Array, pads: Pads, strides: Strides) -> Array:
    """Product of spectra, at the smallest size whose wrap-around misses every output that is kept.

    Not for a CPU unless asked for: there XLA's FFT may wait for ever for threads that wait for it (jaxlib 0.11.2).
    """
    x, pads = _within_reach(x, kernel, pads)
    (height, width), kept = _circle(x, kernel, pads, strides)
    lengths = _fft_length(height), _fft_length(width)
    image = jnp.moveaxis(x.astype(at_least_float32(x)), -1, 1)
    flipped = jnp.moveaxis(kernel.astype(image.dtype)[::-1, ::-1], -1, 0)[None]
    full = jnp.fft.irfft2(jnp.fft.rfft2(image, lengths) * jnp.fft.rfft2(flipped, lengths), lengths)
    return jnp.moveaxis(full[:, :, kept[0], kept[1]], 1, -1).astype(x.dtype)


def _within_reach(x: Array, kernel: Array, pads: Pads) -> tuple[Array, Pads]:
    """With padding beyond the kernel's reach, which is no part of a circular convolution, written out as zeros."""
    if any(p >= k for pair, k in zip(pads, kernel.shape, strict=False) for p in pair):
        return jnp.pad(x, ((0, 0), *pads, (0, 0))), ((0, 0), (0, 0))
    return x, pads


def _circle(x: Array, kernel: Array, pads: Pads, strides: Strides) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Height and width of the smallest circular convolution that has every output, and where in it they are."""
    axes = list(zip(x.shape[1:3], kernel.shape[:2], pads, strides, strict=True))
    height, width = (max(size + low, size + high, k) for size, k, (low, high), _ in axes)
    rows, columns = (slice(k - 1 - low, size + high, stride) for size, k, (low, high), stride in axes)
    return (height, width), (rows, columns)


def _fft_length(minimum: int) -> int:
    """The next even length with no prime factor above 5, which FFTs handle best."""

    def smooth(n: int) -> bool:
        for factor in (2, 3, 5):
            while n % factor == 0:
                n //= factor
        return n == 1

    return next(n for n in range(minimum + minimum % 2, 2 * minimum + 2, 2) if smooth(n))


def dft(x: Array, kernel: Array, pads: Pads, strides: Strides) -> Array:
    """Product of spectra as in `fft`, but each transform is a matrix product, to and from only the pixels there are.

    Complex numbers are pairs of real ones. Images are (H, W, B * C), so that rows are transformed by one large product
    and columns by one per row.
    """
    x, pads = _within_reach(x, kernel, pads)
    (height, width), (kept_rows, kept_columns) = _circle(x, kernel, pads, strides)
    rows, columns = np.arange(height), np.arange(width // 2 + 1)  # further columns mirror these, the image being real

    def spectrum(pixels: Array) -> Array:
        """(h, w, N) -> (rows, 2, columns, N)"""
        h, w, _ = pixels.shape
        by_row = _product("pfh,hwn->fpwn", _pairs(_waves(-rows, np.arange(h), height))[:, :, 0], pixels)
        return _each_row(_pairs(_waves(-columns, np.arange(w), width)), by_row)

    batch, channels = x.shape[0], x.shape[3]
    image = spectrum(x.astype(at_least_float32(x)).transpose(1, 2, 0, 3).reshape(*x.shape[1:3], -1))
    a = jnp.moveaxis(image.reshape(height, 2, len(columns), batch, channels), 1, 0)
    b = jnp.moveaxis(spectrum(kernel.astype(image.dtype)[::-1, ::-1])[..., None, :], 1, 0)
    product = jnp.stack([a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]], 1)

    mirrored = np.where((columns == 0) | (2 * columns == width), 1, 2) / (height * width)
    to_columns = _waves(np.arange(width)[kept_columns], columns, width) * mirrored
    by_row = _each_row(_pairs(to_columns), product.reshape(height, 2, len(columns), -1))
    y = _product("hpf,fpwn->hwn", _pairs(_waves(np.arange(height)[kept_rows], rows, height))[0], by_row)
    return y.reshape(*y.shape[:2], batch, channels).transpose(2, 0, 1, 3).astype(x.dtype)


def _waves(a: np.ndarray, b: np.ndarray, length: int) -> np.ndarray:
    """exp(2 pi i a b / length), (len(a), len(b)) complex."""
    return np.exp(2j * np.pi / length * (np.outer(a, b) % length))


def _pairs(matrix: np.ndarray) -> np.ndarray:
    """A complex matrix (m, n) that multiplies pairs of a real and an imaginary part: (2, m, 2, n)."""
    real, imaginary = matrix.real, matrix.imag
    return np.stack([np.stack([real, -imaginary], 1), np.stack([imaginary, real], 1)])


def _each_row(pairs: np.ndarray, x: Array) -> Array:
    """(2, m, 2, n) times each row of x (rows, 2, n, N) -> (rows, 2, m, N); a product per row, to transpose nothing."""
    matrices = jnp.broadcast_to(pairs.astype(x.dtype), (len(x), *pairs.shape))
    return _product("rqmpn,rpnk->rqmk", matrices, x)


def _product(equation: str, matrix: np.ndarray | Array, x: Array) -> Array:
    return jnp.einsum(equation, matrix.astype(x.dtype), x, precision=lax.Precision.HIGHEST)


def shifts(x: Array, kernel: Array, pads: Pads, strides: Strides) -> Array:
    """One shifted copy of the image per kernel cell, multiplied and added: fused, or a row of cells at a time."""
    kernel, pads = reachable(x, kernel, pads)
    kh, kw, _ = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = output_size(x.shape[1:3], (kh, kw), ((0, 0), (0, 0)), strides)
    span = (height - 1) * strides[0] + 1

    def add_row(i: Array | int, total: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(x, i, span, axis=1)[:, :: strides[0]]
        for j in range(kw):
            shifted = rows[:, :, j : j + (width - 1) * strides[1] + 1 : strides[1]]
            total += shifted.astype(total.dtype) * cells[i, j]
        return total

    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), at_least_float32(x))
    cells = kernel.astype(total.dtype)[:, :, None, None, None]
    if math.prod((kh, kw)) <= FUSED_CELLS:
        for i in range(kh):
            total = add_row(i, total)
    else:
        total = lax.fori_loop(0, kh, add_row, total)
    return total.astype(x.dtype)


def toeplitz(x: Array, kernel: Array, pads: Pads, strides: Strides) -> Array:
    """A product per channel, for matrix units: an image is a vector, and its convolution a matrix.

    For small images: the matrix has H' W' x H W numbers, of which those that are on one diagonal of a block are equal.
    """
    matrices = toeplitz_matrices(kernel, x.shape[1:3], pads, strides)
    return times_matrices(x, matrices, output_size(x.shape[1:3], kernel.shape[:2], pads, strides))


def toeplitz_matrices(kernel: Array, size: tuple[int, ...], pads: Pads, strides: Strides) -> Array:
    """What convolves images of a size (H, W) with each channel's kernel (kh, kw, C), as a matrix: (C, H' W', H W)."""
    out = output_size(size, kernel.shape[:2], pads, strides)
    rows, columns = (
        _cells_met(length, k, low, stride, outputs)
        for length, k, (low, _), stride, outputs in zip(size, kernel.shape[:2], pads, strides, out, strict=True)
    )
    by_row = _product("nwj,ijc->inwc", columns, kernel)
    return _product("mhi,inwc->cmnhw", rows, by_row).reshape(-1, math.prod(out), math.prod(size))


def times_matrices(x: Array, matrices: Array, out: tuple[int, ...], precision: Any = None) -> Array:
    """x (B, H, W, C), matrices (C, H' W', H W) -> (B, *out, C), summed in float32."""
    flat, wide = x.reshape(len(x), -1, x.shape[3]), at_least_float32(x)
    y = jnp.einsum("bic,coi->boc", flat, matrices, precision=precision, preferred_element_type=wide)
    return y.astype(x.dtype).reshape(len(x), *out, x.shape[3])


def bands(x: Array, kernel: Array, pads: Pads, strides: Strides) -> Array:
    """A product per channel and row of the kernel, for matrix units: a row of an image is a vector.

    The matrices have W' x W numbers each, a band of which are not 0.
    """
    kernel, (rows, columns) = reachable(x, kernel, pads)
    x = jnp.pad(x, ((0, 0), rows, (0, 0), (0, 0)))
    height, width = output_size(x.shape[1:3], kernel.shape[:2], ((0, 0), columns), strides)
    met = _cells_met(x.shape[2], kernel.shape[1], columns[0], strides[1], width)
    total = jnp.zeros((), at_least_float32(x))
    for i, band in enumerate(_product("nwj,ijc->icnw", met, kernel)):
        lines = x[:, i : i + (height - 1) * strides[0] + 1 : strides[0]]
        total += jnp.einsum("bhwc,cnw->bhnc", lines, band, preferred_element_type=total.dtype)
    return total.astype(x.dtype)


def _cells_met(size: int, cells: int, low: int, stride: int, out: int) -> np.ndarray:
    """(out, size, cells): 1 where an output meets a pixel by that cell of the kernel, along one axis."""
    cell = np.arange(size)[None] - np.arange(out)[:, None] * stride + low
    return (cell[..., None] == np.arange(cells)).astype(np.float32)


def reachable(x: Array, kernel: Array, pads: Pads) -> tuple[Array, Pads]:
    """Without the kernel cells that only ever meet padding, as most do where the kernel outgrows the image."""
    slices, kept = [], []
    for size, k, (low, high) in zip(x.shape[1:3], kernel.shape[:2], pads, strict=True):
        first, last = max(0, low - (size + low + high - k)), min(k, size + low)
        slices.append(slice(first, last))
        kept.append((low - first, high - (k - last)))
    return kernel[slices[0], slices[1]], (kept[0], kept[1])

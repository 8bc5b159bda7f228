"""Exact lowerings of depthwise convolution in plain JAX; `benchmarks/depthwise.py` times them side by side.

Each takes x (B, H, W, C), kernel (kh, kw, C), explicit padding and strides, and returns (B, H', W', C) in x's dtype.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

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
    """Product of spectra, at the smallest size whose wrap-around misses every output that is kept."""
    if any(p >= k for pair, k in zip(pads, kernel.shape, strict=False) for p in pair):
        # Padding beyond the kernel's reach is not part of a circular convolution: write the zeros out.
        x, pads = jnp.pad(x, ((0, 0), *pads, (0, 0))), ((0, 0), (0, 0))
    axes = list(zip(x.shape[1:3], kernel.shape[:2], pads, strict=True))
    lengths = [_fft_length(max(size + low, size + high, k)) for size, k, (low, high) in axes]
    image = jnp.moveaxis(x.astype(jnp.float32), -1, 1)
    flipped = jnp.moveaxis(kernel.astype(jnp.float32)[::-1, ::-1], -1, 0)
    full = jnp.fft.irfft2(jnp.fft.rfft2(image, lengths) * jnp.fft.rfft2(flipped, lengths), lengths)
    kept = [
        slice(k - 1 - low, size + high, stride) for (size, k, (low, high)), stride in zip(axes, strides, strict=True)
    ]
    return jnp.moveaxis(full[:, :, kept[0], kept[1]], 1, -1).astype(x.dtype)


def _fft_length(minimum: int) -> int:
    """The next even length with no prime factor above 5, which FFTs handle best."""

    def smooth(n: int) -> bool:
        for factor in (2, 3, 5):
            while n % factor == 0:
                n //= factor
        return n == 1

    return next(n for n in range(minimum + minimum % 2, 2 * minimum + 2, 2) if smooth(n))


def shifts(x: Array, kernel: Array, pads: Pads, strides: Strides) -> Array:
    """One shifted copy of the image per kernel cell, multiplied and added: fused, or a row of cells at a time."""
    kernel, pads = _reachable(x, kernel, pads)
    kh, kw, _ = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((s - k) // stride + 1 for s, k, stride in zip(x.shape[1:3], (kh, kw), strides, strict=True))
    span = (height - 1) * strides[0] + 1

    def add_row(i: Array | int, total: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(x, i, span, axis=1)[:, :: strides[0]]
        for j in range(kw):
            total += rows[:, :, j : j + (width - 1) * strides[1] + 1 : strides[1]] * kernel[i, j]
        return total

    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), jnp.promote_types(x.dtype, jnp.float32))
    if math.prod((kh, kw)) <= FUSED_CELLS:
        for i in range(kh):
            total = add_row(i, total)
    else:
        total = lax.fori_loop(0, kh, add_row, total)
    return total.astype(x.dtype)


def _reachable(x: Array, kernel: Array, pads: Pads) -> tuple[Array, Pads]:
    """Without the kernel cells that only ever meet padding, as most do where the kernel outgrows the image."""
    slices, kept = [], []
    for size, k, (low, high) in zip(x.shape[1:3], kernel.shape[:2], pads, strict=True):
        first, last = max(0, low - (size + low + high - k)), min(k, size + low)
        slices.append(slice(first, last))
        kept.append((low - first, high - (k - last)))
    return kernel[slices[0], slices[1]], (kept[0], kept[1])

"""How a convolution is lowered: XLA's own, and exact, faster lowerings of depthwise convolution.

XLA lowers a depthwise convolution to a loop that is 10 to 100 times slower than the machine (jax issue 23713). The
lowerings here compute the same sums; `benchmarks/depthwise.py` times them side by side.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

Padding = int | str | Sequence[int | tuple[int, int]]
Pads = tuple[tuple[int, int], ...]
Method = Literal["auto", "direct", "fft", "shifts"]

_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
PADDING_MODES = ("zeros", *_PAD_MODES)


def explicit_padding(
    padding: Padding, *, size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int]
) -> Pads:
    """Padding as (low, high) pairs per axis, from a number, "SAME", "VALID", or one number or pair per axis.

    Raises ValueError for a padding that is none of these, or negative.
    """
    dims = len(size)
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"padding (={padding!r}) must be numbers, 'SAME' or 'VALID'")
        return tuple((low, high) for low, high in lax.padtype_to_pads(size, kernel_size, stride, padding.upper()))
    if isinstance(padding, int):
        padding = (padding,) * dims
    pairs = tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding)
    if len(pairs) != dims or min(low for pair in pairs for low in pair) < 0:
        raise ValueError(
            f"padding (={padding}) must hold one number or (low, high) pair per axis ({dims}), none negative"
        )
    return pairs


def convolve(
    x: Array,
    kernel: Array,
    *,
    stride: Sequence[int],
    padding: Padding,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Array:
    """Cross-correlation in 1, 2 or 3 dimensions, by the fastest lowering known for its shape.

    x (B, *size, in), kernel (*kernel_size, in/groups, out) -> (B, *out_size, out).
    """
    dims = kernel.ndim - 2
    pads = explicit_padding(padding, size=x.shape[1:-1], kernel_size=kernel.shape[:dims], stride=stride)
    if padding_mode != "zeros":
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode=_PAD_MODES[padding_mode])
        pads = ((0, 0),) * dims
    if dims == 2 and groups == x.shape[-1] == kernel.shape[-1] > 1:
        return depthwise_conv(x, kernel[:, :, 0], padding=pads, stride=(stride[0], stride[1]))
    spatial = "DHW"[-dims:]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(
        x, kernel, tuple(stride), pads, dimension_numbers=layout, feature_group_count=groups
    )


def depthwise_conv(
    x: Array,
    kernel: Array,
    *,
    padding: Padding,
    stride: int | tuple[int, int] = 1,
    method: Method = "auto",
) -> Array:
    """Depthwise cross-correlation: each channel with its own 2-D kernel.

    x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C) in x's dtype.
    padding: a number, "SAME", "VALID", or one number or (low, high) pair per axis.
    method: a lowering, or "auto" for the one measured fastest for this platform and shape.
    Raises ValueError where shapes do not fit or the method is unknown.
    """
    if x.ndim != 4 or kernel.ndim != 3 or x.shape[-1] != kernel.shape[-1]:
        raise ValueError(f"x {x.shape} must be (B, H, W, C) and kernel {kernel.shape} (kh, kw, C), with equal C")
    strides = (stride, stride) if isinstance(stride, int) else stride
    pads = explicit_padding(padding, size=x.shape[1:3], kernel_size=kernel.shape[:2], stride=strides)
    if any(s + sum(pair) < k for s, pair, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)):
        raise ValueError(f"kernel {kernel.shape} is larger than the image {x.shape} with its padding {pads}")
    lowering = _fastest(x, kernel) if method == "auto" else method
    if lowering not in _LOWERINGS:
        raise ValueError(f"method (={method!r}) must be one of auto, {', '.join(_LOWERINGS)}")
    return _depthwise_compiled(x, kernel, pads, strides, lowering)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _depthwise(x: Array, kernel: Array, pads: Pads, strides: tuple[int, int], method: str) -> Array:
    return _LOWERINGS[method](x, kernel, pads, strides)


@partial(_depthwise.defjvp, symbolic_zeros=True)
def _depthwise_jvp(
    pads: Pads, strides: tuple[int, int], method: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Bilinear: each factor's tangent goes through a lowering whose transpose is fast, which `shifts` has only for the
    image, and only while its cells are fused."""
    (x, kernel), (dx, dkernel) = primals, tangents
    for_kernel = "fft" if method == "shifts" else method
    for_image = method if math.prod(kernel.shape[:2]) <= _FUSED_CELLS else for_kernel
    out = _depthwise(x, kernel, pads, strides, method)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        tangent += _LOWERINGS[for_image](dx, kernel, pads, strides)
    if not isinstance(dkernel, SymbolicZero):
        tangent += _LOWERINGS[for_kernel](x, dkernel, pads, strides)
    return out, tangent


# Compiled as a whole also where the caller is not, and once for all blocks of a stage; `describe` knows it by its name.
_depthwise_compiled = jax.jit(_depthwise, static_argnums=(2, 3, 4))


def _direct(x: Array, kernel: Array, pads: Pads, strides: tuple[int, int]) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        strides,
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _fft(x: Array, kernel: Array, pads: Pads, strides: tuple[int, int]) -> Array:
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


def _shifts(x: Array, kernel: Array, pads: Pads, strides: tuple[int, int]) -> Array:
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
    if kh * kw <= _FUSED_CELLS:
        for i in range(kh):
            total = add_row(i, total)
    else:
        total = lax.fori_loop(0, kh, add_row, total)
    return total.astype(x.dtype)


_FUSED_CELLS = 64  # XLA's CPU compiler stops fusing somewhere above


def _reachable(x: Array, kernel: Array, pads: Pads) -> tuple[Array, Pads]:
    """Without the kernel cells that only ever meet padding, as most do where the kernel outgrows the image."""
    slices, kept_pads = [], []
    for size, k, (low, high) in zip(x.shape[1:3], kernel.shape[:2], pads, strict=True):
        first, last = max(0, low - (size + low + high - k)), min(k, size + low)
        slices.append(slice(first, last))
        kept_pads.append((low - first, high - (k - last)))
    return kernel[slices[0], slices[1]], tuple(kept_pads)


_LOWERINGS: dict[str, Callable[..., Array]] = {"direct": _direct, "fft": _fft, "shifts": _shifts}


def _fastest(x: Array, kernel: Array) -> str:
    """On CPU `shifts` for small kernels and small images, `fft` for the rest, as `benchmarks/depthwise.py` measures."""
    if jax.default_backend() != "cpu":
        return "direct"
    if math.prod(kernel.shape[:2]) <= _FUSED_CELLS or math.prod(x.shape[1:3]) <= 14 * 14:
        return "shifts"
    return "fft"

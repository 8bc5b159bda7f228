"""Kernels in C++ behind XLA's foreign function interface, for CPUs: optional, built where a compiler was found.

Without the library everything works through the plain JAX lowerings. `DCLS_JAX_NATIVE=0` turns it off, and
`DCLS_JAX_NATIVE=plain`, `avx2` or `avx512` bounds the instruction set.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_LEVELS = {"plain": 0, "avx2": 1, "avx512": 2}


@cache
def available() -> bool:
    """Whether the library is there and registered with XLA."""
    if os.environ.get("DCLS_JAX_NATIVE") == "0":
        return False
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        return False
    library = ctypes.CDLL(str(found[0]))
    for name in ("dcls_depthwise", "dcls_depthwise_kernel_gradient", "dcls_average_ranks", "dcls_spearman"):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True


@cache
def _level() -> np.int64:
    setting = os.environ.get("DCLS_JAX_NATIVE", "avx512")
    if setting not in _LEVELS:
        raise ValueError(f"DCLS_JAX_NATIVE (={setting!r}) must be 0 or one of {', '.join(_LEVELS)}")
    return np.int64(_LEVELS[setting])


def supports(x: Array, strides: tuple[int, int]) -> bool:
    """Whether the library convolves images of this dtype (float32, bfloat16) at these strides (1, 2)."""
    return x.dtype in (jnp.float32, jnp.bfloat16) and strides in ((1, 1), (2, 2)) and available()


def depthwise(
    x: Array, kernel: Array, pads: tuple[tuple[int, int], tuple[int, int]], strides: tuple[int, int]
) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C)."""
    out = [
        (size + sum(pair) - k) // stride + 1
        for size, pair, k, stride in zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True)
    ]
    call = jax.ffi.ffi_call("dcls_depthwise", jax.ShapeDtypeStruct((x.shape[0], *out, x.shape[3]), x.dtype))
    (top, _), (left, _) = pads
    return call(
        x,
        kernel.astype(x.dtype),
        pad_top=np.int64(top),
        pad_left=np.int64(left),
        stride=np.int64(strides[0]),
        level=_level(),
    )


def kernel_gradient(
    x: Array, grad: Array, pads: tuple[tuple[int, int], tuple[int, int]], size: tuple[int, int]
) -> Array:
    """x (B, H, W, C), grad (B, H', W', C) at stride 1 -> (kh, kw, C) in x's dtype."""
    partial = jax.ShapeDtypeStruct((x.shape[0], *size, x.shape[3]), jnp.float32)
    (top, _), (left, _) = pads
    call = jax.ffi.ffi_call("dcls_depthwise_kernel_gradient", partial)
    per_image = call(x, grad.astype(x.dtype), pad_top=np.int64(top), pad_left=np.int64(left), level=_level())
    return per_image.sum(0).astype(x.dtype)


def average_ranks(x: Array) -> Array:
    """Ranks from 1 along the last axis, ties sharing their average: x (..., N) float32 -> the same shape.

    NaN throughout a row in which a value is not finite.
    """
    return jax.ffi.ffi_call("dcls_average_ranks", x, vmap_method="broadcast_all")(x)


def spearman(a: Array, b: Array) -> Array:
    """Spearman's rank correlation along the last axis: a, b (..., N) float32 -> (...).

    NaN where a row is constant or has a value that is not finite.
    """
    call = jax.ffi.ffi_call("dcls_spearman", jax.ShapeDtypeStruct(a.shape[:-1], a.dtype), vmap_method="broadcast_all")
    return call(a, b)

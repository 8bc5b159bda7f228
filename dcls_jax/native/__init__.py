"""Kernels in C++ behind XLA's foreign function interface: optional, built where a compiler was found.

Those for CPUs are called from here, those for GPUs from cuda.py.

Without the library everything works through the plain JAX lowerings. `DCLS_JAX_NATIVE=0` turns it off, and
`DCLS_JAX_NATIVE=plain`, `avx2` or `avx512` bounds the instruction set.
"""

import ctypes
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dcls_jax.padding import output_size

LIBRARY = Path(__file__).with_name("_kernels.so")

# Of each platform the targets, and of each target the functions for the stages of a call.
_HANDLERS = {
    "cpu": {
        name: {"execute": name}
        for name in ("dcls_depthwise", "dcls_depthwise_kernel_gradient", "dcls_average_ranks", "dcls_spearman")
    },
    "CUDA": {"dcls_cuda": {"initialize": "dcls_cuda_prepare", "execute": "dcls_cuda_launch"}},
}
_LEVELS = {"plain": 0, "avx2": 1, "avx512": 2}


def available() -> bool:
    """Whether the library is there and registered with XLA."""
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The library, registered with XLA; a warning says why one that is there cannot be used."""
    if os.environ.get("DCLS_JAX_NATIVE") == "0" or not LIBRARY.exists():
        return None
    try:
        opened, handlers = _load(LIBRARY)
    except (OSError, AttributeError, RuntimeError) as error:
        warnings.warn(
            f"the native kernels cannot be used ({error}); plain JAX takes their place, slower. To rebuild them: "
            "pip install --force-reinstall --no-deps --no-cache-dir dcls_jax, or in a checkout pip install -e .",
            stacklevel=2,
        )
        return None
    for platform, targets in _HANDLERS.items():
        for name, stages in targets.items():
            capsules = {stage: jax.ffi.pycapsule(handlers[function]) for stage, function in stages.items()}
            jax.ffi.register_ffi_target(name, capsules, platform=platform)
    return opened


def _load(path: Path) -> tuple[ctypes.CDLL, dict[str, Any]]:
    """The library, and its handlers by name.

    Raises OSError where it cannot be opened, AttributeError where a handler is missing, RuntimeError where it needs a
    newer XLA: to register it then would leave JAX without its CPU backend.
    """
    opened = ctypes.CDLL(str(path))
    major, minor = ctypes.c_int32(), ctypes.c_int32()
    opened.dcls_ffi_version(ctypes.byref(major), ctypes.byref(minor))
    built, here = (major.value, minor.value), _ffi_version()
    if built[0] != here[0] or built > here:
        versions = ["{}.{}".format(*version) for version in (built, here)]
        raise RuntimeError(f"built for XLA's FFI {versions[0]}, where jaxlib {jax.lib.__version__} has {versions[1]}")
    stages = [stages for targets in _HANDLERS.values() for stages in targets.values()]
    return opened, {name: getattr(opened, name) for functions in stages for name in functions.values()}


def _ffi_version() -> tuple[int, int]:
    """The version of the foreign function interface that jaxlib has, by its own headers."""
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    major, minor = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    if major is None or minor is None:
        raise RuntimeError(f"jaxlib {jax.lib.__version__} does not say which version of XLA's FFI it has")
    return int(major[1]), int(minor[1])


@cache
def _level() -> np.int64:
    setting = os.environ.get("DCLS_JAX_NATIVE", "avx512")
    if setting not in _LEVELS:
        raise ValueError(f"DCLS_JAX_NATIVE (={setting!r}) must be 0 or one of {', '.join(_LEVELS)}")
    return np.int64(_LEVELS[setting])


def supports(platform: str, x: Array, strides: tuple[int, int]) -> bool:
    """Whether the library, for CPUs alone, convolves this dtype (float32, bfloat16) at these strides (1, 2)."""
    known = platform == "cpu" and x.dtype in (jnp.float32, jnp.bfloat16) and strides in ((1, 1), (2, 2))
    return known and available()


def depthwise(
    x: Array, kernel: Array, pads: tuple[tuple[int, int], tuple[int, int]], strides: tuple[int, int]
) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C)."""
    out = output_size(x.shape[1:3], kernel.shape[:2], pads, strides)
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

"""Depthwise convolution in CUDA C++ (depthwise.cu), compiled by NVRTC on the machine with the GPU.

NVRTC comes with `jax[cuda12]` and `jax[cuda13]`; what starts the kernels is part of the native library. Without one of
them everything works through the plain JAX lowerings.
"""

import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dcls_jax import native
from dcls_jax.lowerings import Pads, Strides, reachable
from dcls_jax.padding import output_size

SOURCE = Path(__file__).with_name("depthwise.cu")
THREADS = 128  # of a block
# Threads that keep a large GPU of today busy: without tiles, and with tiles, each with much to do at a time.
LANES, BUSY = 150_000, 2**16


class Tile(NamedTuple):
    """What a thread has in registers: rows and columns of the output, and neighbouring channels."""

    rows: int
    columns: int
    channels: int


@cache
def available() -> bool:
    """Whether the native library is there, and NVRTC and the driver beside it."""
    library = native.library()
    if library is None:
        return False
    return any(library.dcls_cuda_open(str(path).encode(), SOURCE.read_bytes()) == 0 for path in _nvrtc())


def _nvrtc() -> list[Path]:
    """Where NVRTC may be: in NVIDIA's packages, the newest first, or where the system has its libraries."""
    package = importlib.util.find_spec("nvidia")
    folders = [] if package is None else list(package.submodule_search_locations or [])
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.[0-9]*")]
    return [*sorted(found, key=lambda path: path.name, reverse=True), Path("libnvrtc.so.13"), Path("libnvrtc.so.12")]


def supports(platform: str, x: Array, strides: Strides) -> bool:
    """Whether this dtype (float32, bfloat16) at these strides (equal ones) is convolved here."""
    known = platform == "cuda" and x.dtype in (jnp.float32, jnp.bfloat16) and strides[0] == strides[1]
    return known and available()


def depthwise(x: Array, kernel: Array, pads: Pads, strides: Strides, tile: Tile | None = None) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C)."""
    kernel, pads = reachable(x, kernel, pads)
    height, width = output_size(x.shape[1:3], kernel.shape[:2], pads, strides)
    y = jax.ShapeDtypeStruct((x.shape[0], height, width, x.shape[3]), x.dtype)
    tile = tile or best_tile(y.shape, strides)
    threads = x.shape[0] * _parts(height, tile.rows) * _parts(width, tile.columns) * (x.shape[3] // tile.channels)
    shape = _definitions(x, kernel.shape, y.shape, pads, strides, tile)
    return _launch(x, kernel.astype(jnp.float32), y, threads, shape)


def kernel_gradient(
    x: Array, grad: Array, pads: Pads, strides: Strides, size: tuple[int, int], tile: Tile | None = None
) -> Array:
    """x (B, H, W, C), grad (B, H', W', C) -> (kh, kw, C) in x's dtype."""
    batch, *_, channels = x.shape
    tile = tile or best_tile(grad.shape, strides)
    per_split = size[0] * (channels // tile.channels)
    splits = max(1, min(LANES // per_split, batch * grad.shape[1]))
    partial = jax.ShapeDtypeStruct((splits, *size, channels), jnp.float32)
    shape = _definitions(x, size, grad.shape, pads, strides, tile) | {"SPLITS": splits}
    summed = _launch(x, grad.astype(x.dtype), partial, splits * per_split, shape).sum(0)
    return summed.astype(x.dtype)


def best_tile(out: tuple[int, ...], strides: Strides) -> Tile:
    """The tile of an output (B, H', W', C): large, as long as there are threads enough; measured on an H100."""
    batch, height, width, channels = out
    columns = _parts(width, _parts(width, 14 // strides[1]))
    pair = 2 if channels % 2 == 0 else 1
    for rows, v in ((2 * strides[0], pair), (1, pair)):
        if batch * _parts(height, rows) * _parts(width, columns) * (channels // v) >= BUSY:
            return Tile(rows, columns, v)
    return Tile(1, columns, 1)


@cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="nvrtc")


def _compile_meanwhile(definitions: str) -> None:
    """NVRTC compiles a kernel while XLA compiles the rest."""
    _compilers().submit(cast(ctypes.CDLL, native.library()).dcls_cuda_compile, definitions.encode())


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _definitions(
    x: Array, size: tuple[int, ...], out: tuple[int, ...], pads: Pads, strides: Strides, tile: Tile
) -> dict[str, int]:
    """The constants that depthwise.cu is compiled with."""
    names = "BATCH", "HEIGHT", "WIDTH", "CHANNELS", "KERNEL_H", "KERNEL_W", "OUT_H", "OUT_W"
    values = dict(zip(names, (*x.shape, *size[:2], *out[1:3]), strict=True))
    values |= {"PAD_TOP": pads[0][0], "PAD_LEFT": pads[1][0], "STRIDE": strides[0], "THREADS": THREADS}
    values |= {"TH": tile.rows, "TW": tile.columns, "V": tile.channels}
    return values | ({"BFLOAT16": 1} if x.dtype == jnp.bfloat16 else {})


def _launch(a: Array, b: Array, out: jax.ShapeDtypeStruct, threads: int, definitions: dict[str, int]) -> Array:
    words = " ".join(f"{name}={value}" for name, value in definitions.items())
    _compile_meanwhile(words)
    return jax.ffi.ffi_call("dcls_cuda", out)(
        a, b, definitions=words, blocks=np.int64(_parts(threads, THREADS)), threads=np.int64(THREADS)
    )

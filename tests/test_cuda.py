"""The kernels for GPUs, their very source compiled for the CPU: a block after the other, a thread after the other."""

import ctypes
import itertools
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.lowerings import direct, dft
from dcls_jax.methods import transpose_of
from dcls_jax.native import cuda

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here")

AS_ON_A_GPU = """
#include <cstdint>
#include <cstring>
#define __device__
#define __global__
#define __launch_bounds__(threads)
struct Index { unsigned x; };
static Index blockIdx, threadIdx;
static float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
static unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
#include "depthwise.cu"
#ifdef SPLITS
#define ENTRY kernel_gradient
using Result = float;
#else
#define ENTRY convolve
using Result = Number;
#endif
extern "C" void run(const Number* a, const Number* b, Result* out, int64_t blocks) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x) ENTRY(a, b, out);
}
"""


@pytest.fixture
def emulated(tmp_path, monkeypatch):
    """`cuda._launch` on the CPU."""
    numbers = itertools.count()

    def launch(entry, a, b, out, threads, definitions):
        source, library = tmp_path / "emulated.cc", tmp_path / f"{next(numbers)}.so"
        program = AS_ON_A_GPU if entry == "kernel_gradient" else AS_ON_A_GPU.replace("#ifdef SPLITS", "#if 0")
        source.write_text(program.replace("depthwise.cu", str(cuda.SOURCE)))
        options = [f"-D{name}={value}" for name, value in ({"SPLITS": 1} | definitions).items()]
        flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC"]
        subprocess.run([COMPILER, *flags, *options, "-o", library, source], check=True)
        # An array that is not quite written is not the result.
        result = np.full(out.shape, np.nan, out.dtype)
        a, b = np.asarray(a), np.asarray(b)
        arguments = (array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, result))
        ctypes.CDLL(str(library)).run(*arguments, ctypes.c_int64(-(-threads // cuda.THREADS)))
        return jnp.asarray(result)

    monkeypatch.setattr(cuda, "_launch", launch)


def arrays(batch, height, width, channels, kernel, pads, stride, dtype):
    rng = np.random.default_rng(0)
    out = [
        (size + sum(pair) - k) // stride + 1 for size, pair, k in zip((height, width), pads, kernel, strict=True)
    ]
    shapes = (batch, height, width, channels), (*kernel, channels), (batch, *out, channels)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


CASES = {
    "as ConvNeXt-T's": (2, 28, 28, 6, (17, 17), ((8, 8), (8, 8)), 1, "float32"),
    "a kernel beyond the image": (3, 7, 7, 4, (17, 17), ((8, 8), (8, 8)), 1, "bfloat16"),
    "odd channels, uneven sides": (2, 9, 17, 5, (3, 7), ((1, 1), (3, 3)), 1, "float32"),
    "as FastViT's": (2, 14, 14, 4, (7, 7), ((3, 3), (3, 3)), 2, "bfloat16"),
    "no padding, 2": (2, 15, 11, 2, (4, 3), ((0, 0), (0, 0)), 2, "float32"),
    "uneven padding, 3": (1, 16, 13, 2, (5, 4), ((1, 3), (0, 2)), 3, "float32"),
    "more padding than kernel": (1, 5, 6, 2, (3, 3), ((4, 4), (5, 3)), 1, "float32"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_are_exact(case, emulated):
    """Against float64; bfloat16 to its own rounding of the result."""
    *_, kernel_size, pads, stride, dtype = case
    x, kernel, y = arrays(*case)
    wide = [np.asarray(array, np.float64) for array in (x, kernel, y)]
    rounding = 1e-6 if dtype == "float32" else 2**-8

    want = reference(wide[0], wide[1], pads, stride, y.shape)
    got = cuda.depthwise(x, kernel, pads, (stride, stride))
    assert got.dtype == dtype and got.shape == y.shape
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=1e-6 * np.abs(want).max())

    want = reference_gradient(wide[0], wide[2], pads, stride, kernel_size)
    got = cuda.kernel_gradient(x, y, pads, (stride, stride), kernel_size)
    assert got.dtype == dtype and got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=2e-6 * np.abs(want).max())


def windows(x, pads, stride, kernel_size, out):
    """(B, H', W', C, kh, kw), the pixels under the kernel at every output."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, kernel_size, (1, 2))[:, ::stride, ::stride]
    return view[:, : out[1], : out[2]]


def reference(x, kernel, pads, stride, out):
    return np.einsum("bhwcij,ijc->bhwc", windows(x, pads, stride, kernel.shape[:2], out), kernel)


def reference_gradient(x, y, pads, stride, kernel_size):
    return np.einsum("bhwcij,bhwc->ijc", windows(x, pads, stride, kernel_size, y.shape), y)


@pytest.mark.parametrize("tile", [(1, 14, 1), (4, 7, 2), (2, 5, 4), (8, 3, 8)], ids=str)
def test_any_tile_is_exact(tile, emulated):
    x, kernel, y = arrays(2, 11, 13, 8, (5, 7), ((2, 2), (3, 3)), 1, "float32")
    pads, strides, tile = ((2, 2), (3, 3)), (1, 1), cuda.Tile(*tile)
    np.testing.assert_allclose(
        cuda.depthwise(x, kernel, pads, strides, tile), direct(x, kernel, pads, strides), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        cuda.kernel_gradient(x, y, pads, strides, (5, 7), tile),
        transpose_of(dft)(x, y, pads, strides, (5, 7)),
        rtol=1e-5,
        atol=1e-4,
    )


def test_bfloat16_is_rounded_as_by_jax(emulated):
    """Infinities, NaN and ties among it: a kernel of one cell that is 1, and sums that bfloat16 does not hold."""
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, 3e38, 1e-40], np.float32)
    x = jnp.asarray(special.reshape(1, 2, 2, 2), "bfloat16")
    got = cuda.depthwise(x, jnp.ones((1, 1, 2), "bfloat16"), ((0, 0), (0, 0)), (1, 1))
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(x, np.float32))

    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, 2)), "bfloat16")
    kernel = jnp.asarray([[[1.0, 1.0]], [[2**-7, 3 * 2**-9]]], "bfloat16")
    pads = ((0, 0), (0, 0))
    want = direct(x.astype("float32"), kernel.astype("float32"), pads, (1, 1)).astype("bfloat16")
    np.testing.assert_array_equal(np.asarray(cuda.depthwise(x, kernel, pads, (1, 1))), np.asarray(want))

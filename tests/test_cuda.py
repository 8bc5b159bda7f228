"""The kernels for GPUs, their very source compiled for the CPU: a block after the other, a thread after the other."""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax import native
from dcls_jax.lowerings import dft, direct
from dcls_jax.methods import transpose_of
from dcls_jax.native import cuda
from tests.conftest import slow

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
template <typename Second, typename Result>
void RunAll(void (*entry)(const Number*, const Second*, Result*), const void* a, const void* b, void* out,
            int64_t blocks) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x)
      entry(static_cast<const Number*>(a), static_cast<const Second*>(b), static_cast<Result*>(out));
}
extern "C" void run_all(const void* a, const void* b, void* out, int64_t blocks) { RunAll(run, a, b, out, blocks); }
"""


@pytest.fixture
def emulated(tmp_path, monkeypatch):
    """`cuda._launch` on the CPU."""
    numbers = itertools.count()

    def launch(a, b, out, threads, definitions):
        source, library = tmp_path / "emulated.cc", tmp_path / f"{next(numbers)}.so"
        source.write_text(AS_ON_A_GPU.replace("depthwise.cu", str(cuda.SOURCE)))
        options = [f"-D{name}={value}" for name, value in definitions.items()]
        flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC"]
        subprocess.run([COMPILER, *flags, *options, "-o", library, source], check=True)
        # An array that is not quite written is not the result.
        result = np.full(out.shape, np.nan, out.dtype)
        a, b = np.asarray(a), np.asarray(b)
        arguments = (array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, result))
        blocks = ctypes.c_int64(-(-threads // cuda.THREADS))
        ctypes.CDLL(str(library)).run_all(*arguments, blocks)
        return jnp.asarray(result)

    monkeypatch.setattr(cuda, "_launch", launch)


def arrays(batch, height, width, channels, kernel, pads, stride, dtype):
    rng = np.random.default_rng(0)
    out = [(size + sum(pair) - k) // stride + 1 for size, pair, k in zip((height, width), pads, kernel, strict=True)]
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
    assert got.dtype == dtype
    assert got.shape == y.shape
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=1e-6 * np.abs(want).max())

    want = reference_gradient(wide[0], wide[2], pads, stride, kernel_size)
    got = cuda.kernel_gradient(x, y, pads, (stride, stride), kernel_size)
    assert got.dtype == dtype
    assert got.shape == want.shape
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


@pytest.mark.parametrize("tile", [slow((1, 14, 1)), (4, 7, 2), slow((2, 5, 4)), slow((8, 3, 8))], ids=str)
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


NVRTC_AND_DRIVER = """
#include <cstdio>
#include <cstring>
extern "C" {
int nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*, const char* const*) {
  return *program = 0, 0;
}
int nvrtcCompileProgram(void*, int n, const char* const* o) {
  for (int i = 0; i < n; ++i) std::printf("%s ", o[i]);
  std::fflush(stdout);
  return std::strcmp(o[n - 1], "-DTH=0") == 0;
}
int nvrtcGetProgramLogSize(void*, size_t* n) { return *n = 9, 0; }
int nvrtcGetProgramLog(void*, char* text) { return std::strcpy(text, "no tile!"), 0; }
int nvrtcGetCUBINSize(void*, size_t* n) { return *n = 4, 0; }
int nvrtcGetCUBIN(void*, char*) { return 0; }
int nvrtcDestroyProgram(void**) { return 0; }
int nvrtcGetNumSupportedArchs(int* n) { return *n = 2, 0; }
int nvrtcGetSupportedArchs(int* a) { return a[0] = 80, a[1] = 90, 0; }
int cuInit(unsigned) { return 0; }
int cuStreamGetCtx(void*, void**) { return 1; }
int cuCtxPushCurrent_v2(void*) { return 1; }
int cuCtxPopCurrent_v2(void**) { return 1; }
int cuDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute == 75 ? MAJOR : 0, 0; }
int cuLibraryLoadData(void**, const void*, void*, void*, unsigned, void*, void*, unsigned) { return LOADS; }
int cuLibraryGetKernel(void**, void*, const char* name) { return std::strcmp(name, "run"); }
int cuLaunchKernel() { return 1; }
}
"""


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built here")
@pytest.mark.parametrize(
    ("major", "loads", "said"),
    [
        (9, 0, "[True, '', 'no tile!', '']"),  # an error is kept with its kernel, and does not hinder others
        (9, 209, "[True, 'the driver does not load it (error 209)'"),
        (6, 0, "[False]"),  # a GPU that NVRTC does not know
    ],
)
def test_kernels_are_compiled_for_the_gpu_that_is_there(tmp_path, major, loads, said):
    """With an NVRTC and a driver that only say what they are asked."""
    source, library = tmp_path / "fake.cc", tmp_path / "libcuda.so.1"
    source.write_text(NVRTC_AND_DRIVER)
    flags = ["-std=c++17", "-w", "-shared", "-fPIC", f"-DMAJOR={major}", f"-DLOADS={loads}"]
    subprocess.run([COMPILER, *flags, "-o", library, source], check=True)
    program = f"""
import ctypes, pathlib
from dcls_jax import native
from dcls_jax.native import cuda
cuda._nvrtc = lambda: [pathlib.Path("nowhere.so"), pathlib.Path({str(library)!r})]
said = [cuda.available()]
if said[0]:
    compile = native.library().dcls_cuda_compile
    compile.restype = ctypes.c_char_p
    said += [compile(words).decode() for words in (b"TH=1 TW=2", b"TH=0", b"TH=1 TW=2")]
print(said)
"""
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said in done.stdout
    options = "--gpu-architecture=sm_90 --std=c++17 -DTH=1 -DTW=2"
    assert done.stdout.count(options) == (major == 9)  # once, and then it is there

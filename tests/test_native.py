"""The native library is used where it fits, and only there; without it everything still runs."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax import depthwise_conv, native
from dcls_jax.methods import FASTEST, fastest

pytestmark = pytest.mark.as_for_users

built = pytest.mark.skipif(not native.available(), reason="the native kernels are not built here")


@pytest.fixture
def asked_anew():
    """`available` answers once per process; here it is asked again, and again afterwards."""
    native.library.cache_clear()
    yield native.available
    native.library.cache_clear()


@built
def test_the_library_is_built_for_the_oldest_interface_that_is_supported():
    """Older than any XLA that it may meet: jaxlib 0.10.2 has 0.3, 0.11.1 and later 0.4, 0.12 has 0.5."""
    major, minor = native.ctypes.c_int32(), native.ctypes.c_int32()
    native.ctypes.CDLL(str(native.LIBRARY)).dcls_ffi_version(native.ctypes.byref(major), native.ctypes.byref(minor))
    assert (major.value, minor.value) == (0, 3)


@built
@pytest.mark.parametrize("version", [(0, 2), (1, 3)])
def test_a_library_of_another_interface_is_left_alone_with_one_warning(monkeypatch, asked_anew, version):
    monkeypatch.setattr(native, "_ffi_version", lambda: version)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: pytest.fail("registered"))
    with pytest.warns(UserWarning, match=r"built for XLA's FFI 0\.3.*To rebuild them: pip install"):
        assert not asked_anew()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not asked_anew()


def test_a_file_that_is_no_library_is_left_alone_with_a_warning(monkeypatch, asked_anew, tmp_path):
    (tmp_path / "_kernels.so").write_bytes(b"no library")
    monkeypatch.delenv("DCLS_JAX_NATIVE", raising=False)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_kernels.so")
    with pytest.warns(UserWarning, match="the native kernels cannot be used"):
        assert not asked_anew()


def test_the_version_of_the_interface_is_read_from_jaxlib():
    major, minor = native._ffi_version()
    assert major == 0
    assert minor >= 3


@built
@pytest.mark.parametrize("method", ["native", "from the environment"])
@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_the_cpus_kernels_are_refused_elsewhere(monkeypatch, platform, method):
    if method == "from the environment":
        monkeypatch.setenv("DCLS_JAX_DEPTHWISE", "native")
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4))

    def convolve(x, kernel):
        return depthwise_conv(x, kernel, padding=1, method="native" if method == "native" else "auto")

    traced = jax.jit(jax.value_and_grad(lambda x, kernel: convolve(x, kernel).sum(), argnums=(0, 1))).trace(x, kernel)
    with pytest.raises(
        ValueError, match=f"'native', or DCLS_JAX_DEPTHWISE.*does not support float32 at strides .* on {platform}"
    ):
        traced.lower(lowering_platforms=(platform,))
    traced.lower(lowering_platforms=("cpu",))


def test_platforms_that_nobody_knows_have_a_lowering():
    def step(x, kernel):
        return jax.value_and_grad(lambda x, k: depthwise_conv(x, k, padding=1).sum(), argnums=(0, 1))(x, kernel)

    lowered = jax.jit(step).trace(jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4))).lower(lowering_platforms=("METAL",))
    assert "convolution" in lowered.as_text()


@pytest.mark.slow
def test_exported_programs_run_anywhere(assert_close):
    def convolve(x, kernel):
        return depthwise_conv(x, kernel, padding=1)

    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (1, 8, 8, 4)), jax.random.normal(keys[1], (3, 3, 4))
    exported = jax.export.export(jax.jit(convolve), platforms=("cpu", "cuda", "tpu"))(x, kernel)
    assert "dcls_depthwise" not in exported.mlir_module()
    assert_close(exported.call(x, kernel), convolve(x, kernel), 1e-5)


@pytest.mark.slow
def test_nothing_that_auto_takes_on_a_cpu_can_wait_for_ever():
    """XLA's FFT can: with jaxlib 0.11.2 the gradient step of a small ConvFormer never ended without native kernels."""
    program = """
import jax, jax.numpy as jnp
from flax import nnx
from dcls_jax import DclsConfig
from dcls_jax.models import create_model

setting = {"dcls": DclsConfig(9, 17, "v1"), "depths": (1, 1, 1, 1), "dims": (32, 32, 32, 32)}
model = create_model("convformer_s18", **setting)
graph, state = nnx.split(model)
step = jax.jit(jax.grad(lambda state, x: (nnx.merge(graph, state)(x) ** 2).sum()))
lowered = step.lower(state, jnp.ones((4, 64, 64, 3)))
assert "fft" not in lowered.as_text()
compiled = lowered.compile()
for _ in range(3):
    jax.block_until_ready(compiled(state, jnp.ones((4, 64, 64, 3))))
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"DCLS_JAX_NATIVE": "0"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == "ended\n", done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 7, 17, 31, 51])
def test_auto_never_means_fft_on_a_cpu(dtype, stride, kernel):
    assert all("fft" not in case["order"] for case in FASTEST["cpu"])
    x = jax.ShapeDtypeStruct((8, 56, 56, 64), np.dtype(jnp.dtype(dtype)))
    assert fastest("cpu", x, (kernel, kernel), (stride, stride), portable=True) in ("shifts", "direct")


@built
@pytest.mark.parametrize("padding", [((0, 0), (0, 20)), ((20, 0), (20, 0)), ((0, 30), (30, 30))])
@pytest.mark.parametrize("size", [3, 7, 9])
def test_the_gradient_to_the_kernel_reaches_as_far_as_the_padding(assert_close, padding, size):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 9, 9, 20), (size, size, 20)))

    def gradient(method):
        return jax.jit(jax.grad(lambda k: jnp.sin(depthwise_conv(x, k, padding=padding, method=method)).sum()))(kernel)

    assert_close(gradient("native"), gradient("direct"), 1e-5)


@pytest.mark.parametrize("method", ["auto", "direct"])
def test_without_jit_everything_still_runs(assert_close, method):
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4))

    def step(x, kernel):
        return jax.value_and_grad(lambda k: depthwise_conv(x, k, padding=1, method=method).sum())(kernel)

    expected = step(x, kernel)
    with jax.disable_jit():
        for result, value in zip(step(x, kernel), expected, strict=True):
            assert_close(result, value, 1e-6)

"""Every lowering of depthwise convolution against its definition in float64, values and both gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dcls_jax import depthwise_conv, native
from dcls_jax.methods import LOWERINGS
from dcls_jax.padding import explicit_padding
from tests.conftest import normal, slow

HERE = jax.default_backend().replace("gpu", "cuda")
needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler at install")
needs_gpu = pytest.mark.skipif(HERE != "cuda", reason="no GPU is here; tests/test_cuda.py runs its kernels on the CPU")
needs_cpu = pytest.mark.skipif(HERE != "cpu", reason="these kernels are for CPUs")
needs_tpu = pytest.mark.skipif(HERE != "tpu", reason="no TPU is here; tests/test_pallas.py interprets its kernels")
needs_triton = pytest.mark.skipif(HERE != "cuda", reason="no GPU is here; tests/test_pallas.py interprets its kernels")
NEEDS = {
    "native": [needs_native, needs_cpu],
    "cuda": [needs_native, needs_gpu],
    "triton": [needs_triton],
    "pallas": [needs_tpu],
}
METHODS = [pytest.param(name, marks=NEEDS.get(name, [])) for name in (*LOWERINGS, "auto")]
NOT_LOCAL = [name for name, lowering in LOWERINGS.items() if not lowering.local]
# image, kernel, padding, stride
CASES = [
    ((14, 14), (7, 7), 3, 1),
    ((28, 20), (17, 17), 8, 1),
    ((7, 7), (17, 17), 8, 1),  # the kernel outgrows the image
    ((3, 5), (9, 9), 4, 1),
    ((9, 8), (3, 5), "SAME", 1),
    ((9, 8), (4, 6), "SAME", 1),
    ((9, 8), (4, 6), "SAME", 2),
    ((12, 13), (4, 3), "VALID", 1),
    ((14, 14), (3, 3), 1, 2),
    ((15, 14), (7, 7), 3, 2),
    ((11, 16), (17, 5), ((9, 7), (0, 4)), (2, 1)),
    ((6, 6), (3, 3), 5, 1),  # more padding than the kernel reaches
    ((4, 5), (3, 3), 20, 1),  # rows enough beyond the image to fill a work item
    ((20, 20), (31, 29), (15, 14), 1),
    ((1, 1), (7, 7), 3, 1),
]


def reference(x, kernel, padding, stride):
    strides = (stride, stride) if isinstance(stride, int) else stride
    pads = explicit_padding(padding, size=x.shape[1:3], kernel_size=kernel.shape[:2], stride=strides)
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        strides,
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def arrays(size, kernel_size, channels=6):
    return normal(2, *size, channels), normal(*kernel_size, channels, seed=1)


@cache
def exact(size, kernel_size, padding, stride, channels=6, dtype="float32"):
    """Image, kernel and a direction; in float64 the output and the gradients along the direction, a cell at a time."""
    x, kernel = (array.astype(dtype) for array in arrays(size, kernel_size, channels))
    strides = np.broadcast_to(stride, 2)
    pads = explicit_padding(padding, size=size, kernel_size=kernel_size, stride=tuple(strides))
    padded, weights = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0))), np.asarray(kernel, np.float64)
    out = (np.array(padded.shape[1:3]) - kernel_size) // strides + 1
    direction = np.random.default_rng(2).standard_normal((len(x), *out, channels)).astype(dtype)
    y, along = np.zeros(direction.shape), direction.astype(np.float64)
    to_padded, to_kernel = np.zeros_like(padded), np.zeros_like(weights)
    for cell in np.ndindex(*kernel_size):
        rows, columns = (slice(i, i + s * n, s) for i, s, n in zip(cell, strides, out, strict=True))
        y += padded[:, rows, columns] * weights[cell]
        to_padded[:, rows, columns] += along * weights[cell]
        to_kernel[cell] = (padded[:, rows, columns] * along).sum((0, 1, 2))
    (top, _), (left, _) = pads
    to_image = to_padded[:, top : top + size[0], left : left + size[1]]
    return x, kernel, jnp.asarray(direction), (y, to_image, to_kernel)


def values_and_gradients(x, kernel, direction, **options):
    """One program, traced anew for each call, for `depthwise_conv` depends on more than its arguments."""

    def run(x, kernel, direction):
        y, pullback = jax.vjp(lambda x, k: depthwise_conv(x, k, **options), x, kernel)
        return y, *pullback(direction)

    return jax.jit(run)(x, kernel, direction)


@pytest.mark.optimised
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "kernel_size", "padding", "stride"), CASES)
def test_values_and_gradients_match_float64(method, size, kernel_size, padding, stride, assert_close):
    x, kernel, direction, expected = exact(size, kernel_size, padding, stride)
    options = {"padding": padding, "stride": stride, "method": method}
    if method in ("native", "cuda") and stride == (2, 1):
        with pytest.raises(ValueError, match="does not support float32 at strides"):
            depthwise_conv(x, kernel, **options)
        return
    for result, exactly in zip(values_and_gradients(x, kernel, direction, **options), expected, strict=True):
        assert result.dtype == jnp.float32
        assert_close(result, exactly, 1e-5)


@needs_native
@pytest.mark.parametrize("level", ["plain", slow("avx2"), "avx512"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("size", "stride", "channels"),  # 40: two whole vectors of the widest set, and half of one
    [(3, 1, 40), (3, 1, 96), (3, 2, 40), (7, 1, 40), (7, 1, 64), (7, 2, 40), (17, 1, 40), (17, 2, 40), slow(51, 1, 40)],
)
def test_native_kernels_of_every_instruction_set(monkeypatch, level, dtype, size, stride, channels, assert_close):
    monkeypatch.setattr(native, "_level", lambda: np.int64(native._LEVELS[level]))
    x, kernel, direction, expected = exact((30, 23), (size, size), size // 2, stride, channels, dtype)
    with jax.default_device(jax.devices("cpu")[0]):
        results = values_and_gradients(x, kernel, direction, padding=size // 2, stride=stride, method="native")
    tolerance = 1e-5 if dtype == "float32" else 2**-8
    for result, exactly in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert_close(result.astype(jnp.float32), exactly, tolerance)


@pytest.mark.optimised
@pytest.mark.parametrize("method", METHODS)
def test_forward_mode_and_second_derivatives(method, assert_close):
    x, kernel = arrays((6, 6), (3, 3))

    def loss(x, kernel, conv):
        return (conv(x, kernel) ** 3).sum()

    def ours(x, kernel):
        return depthwise_conv(x, kernel, padding=1, method=method)

    def theirs(x, kernel):
        return reference(x, kernel, 1, 1)

    def hessian_vector_product(conv):
        return jax.jvp(lambda x: jax.grad(loss)(x, kernel, conv), (x,), (jnp.ones_like(x),))[1]

    assert_close(hessian_vector_product(ours), hessian_vector_product(theirs), 1e-5)
    tangents = [jax.jvp(conv, (x, kernel), (x, kernel))[1] for conv in (ours, theirs)]
    assert_close(*tangents, 1e-5)


@pytest.mark.optimised
@pytest.mark.parametrize("method", METHODS)
def test_vmap_and_bfloat16(method, assert_close):
    x, kernel = arrays((8, 9), (5, 5))
    batched = jax.vmap(lambda x, k: depthwise_conv(x[None], k, padding=2, method=method)[0])
    y = batched(x, jnp.stack([kernel, -kernel]))
    assert_close(y, reference(x, kernel, 2, 1) * jnp.array([1.0, -1.0])[:, None, None, None], 1e-5)
    half = depthwise_conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), padding=2, method=method)
    assert half.dtype == jnp.bfloat16
    assert_close(half.astype(jnp.float32), reference(x, kernel, 2, 1), 2e-2)  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "winograd"}, "method"),
        ({"padding": "same-ish"}, "padding"),
        ({"padding": (1, 2, 3)}, "padding"),
        ({"padding": -1}, "padding"),
        ({"padding": 0}, "larger than the image"),
        ({"kernel": jnp.zeros((3, 3, 5))}, "equal C"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message):
    x, kernel = arrays((4, 4), (7, 7))
    with pytest.raises(ValueError, match=message):
        depthwise_conv(**({"x": x, "kernel": kernel, "padding": 3} | arguments))


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e6])
@pytest.mark.parametrize("method", [method for method in METHODS if method.values[0] not in NOT_LOCAL])
def test_what_lies_beyond_the_kernels_reach_changes_nothing(method, odd):
    x, kernel = arrays((24, 24), (17, 17))
    convolve = jax.jit(lambda x: depthwise_conv(x, kernel, padding=8, method=method))
    y, touched = np.array(convolve(x)), np.array(convolve(x.at[0, 0, 0, 0].set(odd)))
    y[0, :9, :9, 0] = touched[0, :9, :9, 0] = 0
    np.testing.assert_array_equal(touched, y)

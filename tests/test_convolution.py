"""Every lowering of depthwise convolution against XLA's own in float64, values and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dcls_jax import depthwise_conv, native
from dcls_jax.convolution import convolve
from dcls_jax.padding import explicit_padding

METHODS = (
    "direct",
    "fft",
    "dft",
    "shifts",
    "auto",
    pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no C++ compiler at install")),
)
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
    keys = jax.random.split(jax.random.key(1), 2)
    return jax.random.normal(keys[0], (2, *size, channels)), jax.random.normal(keys[1], (*kernel_size, channels))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "kernel_size", "padding", "stride"), CASES)
def test_values_and_gradients_match_float64(method, size, kernel_size, padding, stride, assert_close):
    x, kernel = arrays(size, kernel_size)
    with jax.enable_x64(True):
        exact, exact_pullback = jax.vjp(
            lambda x, k: reference(x, k, padding, stride), x.astype(jnp.float64), kernel.astype(jnp.float64)
        )
        direction = jax.random.normal(jax.random.key(2), exact.shape, jnp.float32)
        exact_gradients = exact_pullback(direction.astype(jnp.float64))
    if method == "native" and stride == (2, 1):
        with pytest.raises(ValueError, match="not built here, or not for float32 at strides"):
            depthwise_conv(x, kernel, padding=padding, stride=stride, method=method)
        return
    y, pullback = jax.vjp(lambda x, k: depthwise_conv(x, k, padding=padding, stride=stride, method=method), x, kernel)
    assert y.dtype == jnp.float32
    assert_close(y, exact, 1e-5)
    for gradient, expected in zip(pullback(direction), exact_gradients, strict=True):
        assert_close(gradient, expected, 1e-5)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler at install")
@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("size", "stride", "channels"),  # 40: two whole vectors of the widest set, and half of one
    [(3, 1, 40), (3, 1, 96), (3, 2, 40), (7, 1, 40), (7, 1, 64), (7, 2, 40), (17, 1, 40), (17, 2, 40), (51, 1, 40)],
)
def test_native_kernels_of_every_instruction_set(monkeypatch, level, dtype, size, stride, channels, assert_close):
    monkeypatch.setattr(native, "_level", lambda: np.int64(native._LEVELS[level]))
    jax.clear_caches()
    x, kernel = (array.astype(dtype) for array in arrays((30, 23), (size, size), channels))
    with jax.enable_x64(True):
        exact, exact_pullback = jax.vjp(
            lambda x, k: reference(x, k, size // 2, stride), x.astype(jnp.float64), kernel.astype(jnp.float64)
        )
        direction = jax.random.normal(jax.random.key(2), exact.shape, jnp.float32).astype(dtype)
        exact_gradients = exact_pullback(direction.astype(jnp.float64))
    y, pullback = jax.vjp(
        lambda x, k: depthwise_conv(x, k, padding=size // 2, stride=stride, method="native"), x, kernel
    )
    tolerance = 1e-5 if dtype == "float32" else 2**-8
    for result, expected in zip((y, *pullback(direction)), (exact, *exact_gradients), strict=True):
        assert result.dtype == dtype
        assert_close(result.astype(jnp.float32), expected, tolerance)


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


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(mode):
    x = jnp.arange(4.0).reshape(1, 4, 1)
    kernel = jnp.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    left = {"zeros": 0, "reflect": 1, "replicate": 0, "circular": 3}[mode]
    right = {"zeros": 0, "reflect": 2, "replicate": 3, "circular": 0}[mode]
    y = convolve(x, kernel, stride=(1,), padding=1, padding_mode=mode)
    np.testing.assert_allclose(y.ravel(), [left + 100, 210, 321, 2 + 30 + 100 * right])

"""The ordinary convolution: padding modes, and what of it is depthwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dcls_jax.convolution import convolve


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(mode):
    x = jnp.arange(4.0).reshape(1, 4, 1)
    kernel = jnp.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    left = {"zeros": 0, "reflect": 1, "replicate": 0, "circular": 3}[mode]
    right = {"zeros": 0, "reflect": 2, "replicate": 3, "circular": 0}[mode]
    y = convolve(x, kernel, stride=(1,), padding=1, padding_mode=mode)
    np.testing.assert_allclose(y.ravel(), [left + 100, 210, 321, 2 + 30 + 100 * right])


@pytest.mark.parametrize(("stride", "padding", "outputs"), [(1, 15, 1), (2, ((15, 3),), 1), (3, 0, 2)])
def test_a_row_of_channels_is_convolved_depthwise_as_grouped(assert_close, stride, padding, outputs):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 70, 8), (31, 1, 8 * outputs)))
    pads = padding if isinstance(padding, tuple) else [(padding, padding)]

    def ours(x, kernel):
        return convolve(x, kernel, stride=(stride,), padding=padding, groups=8)

    def xlas(x, kernel):
        layout = ("NHC", "HIO", "NHC")
        return lax.conv_general_dilated(x, kernel, (stride,), pads, dimension_numbers=layout, feature_group_count=8)

    def step(convolution):
        return jax.jit(jax.value_and_grad(lambda x, k: jnp.sin(convolution(x, k)).sum(), argnums=(0, 1)))

    assert "depthwise_conv" in str(jax.make_jaxpr(ours)(x, kernel))
    for result, expected in zip(*map(jax.tree.leaves, (step(ours)(x, kernel), step(xlas)(x, kernel))), strict=True):
        assert_close(result, expected, 1e-5)

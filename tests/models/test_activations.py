"""GELU against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dcls_jax.models.activations import gelu

X = np.linspace(-12, 12, 24001)


def exact(x):
    return x * special.ndtr(x)


def test_gelu_is_x_times_the_normal_distribution(assert_close):
    x = X.astype(np.float32)
    # 1 + erf loses what is below the rounding of 1: an absolute error, of x times as much
    np.testing.assert_allclose(gelu(x), exact(x.astype(float)), rtol=1e-6, atol=12 * 2**-24)
    slope = jax.vmap(jax.grad(gelu))(x)
    assert_close(slope, special.ndtr(X) + X * np.exp(-(X**2) / 2) / np.sqrt(2 * np.pi), 1e-6)


def test_gelu_rounds_bfloat16_once():
    x = jnp.asarray(X, jnp.bfloat16)
    y = gelu(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))

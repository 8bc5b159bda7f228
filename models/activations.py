"""Activation functions where JAX's own are not the fastest form."""

import jax.numpy as jnp
from jax import Array, lax


def gelu(x: Array) -> Array:
    """x Phi(x), exact (arXiv 1606.08415), any shape, by erf as PyTorch has it, in float32 or better.

    `jax.nn.gelu(approximate=False)` takes erfc, which is closer where the result nears 0, but three times slower.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * y * (1 + lax.erf(y * 0.5**0.5))).astype(x.dtype)

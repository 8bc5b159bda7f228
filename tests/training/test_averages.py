import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcls_jax.models import create_model
from dcls_jax.training import ema


def test_each_leaf_moves_once():
    dcls = {"dcls": True, "depths": (3,), "dims": (4,), "num_classes": 2}
    params = nnx.state(create_model("convnext_tiny", **dcls), nnx.Param)
    average = jax.tree.map(jnp.zeros_like, params)
    moved = ema(average, jax.tree.map(jnp.ones_like, params), 0.99)
    # timm moves the positions that three layers share by 1 - 0.99 ** 3.
    jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, 0.01, rtol=1e-5), moved)


def test_averages_of_bfloat16_stay_float32():
    average, params = {"a": jnp.ones(3)}, {"a": jnp.zeros(3, jnp.bfloat16)}
    for _ in range(2):
        average = jax.jit(ema)(average, params, 0.9999)
    assert average["a"].dtype == jnp.float32
    np.testing.assert_allclose(average["a"], 0.9999**2, rtol=1e-6)

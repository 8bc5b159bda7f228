"""Frozen models: kernels constructed once, wherever the layers are, and arrays of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax import Conv, Dcls2d, freeze
from tests.conftest import normal

pytestmark = pytest.mark.usefixtures("strict")


class Tied(nnx.Module):
    """One layer at two places, another in a dictionary."""

    def __init__(self, rngs):
        layer = Dcls2d(4, 4, 3, padding=2, dilated_kernel_size=5, groups=4, rngs=rngs)
        self.first, self.second = layer, nnx.List([layer])
        self.named = nnx.data({"third": Dcls2d(4, 4, 3, padding=2, dilated_kernel_size=5, rngs=rngs)})

    def __call__(self, x):
        return self.named["third"](self.second[0](self.first(x)))


@pytest.mark.slow
def test_freeze_finds_layers_in_dictionaries_and_keeps_tied_ones_tied(assert_close):
    model, x = Tied(nnx.Rngs(0)), normal(2, 9, 9, 4)
    frozen = freeze(model)
    assert frozen.first is frozen.second[0]
    assert isinstance(frozen.first, Conv)
    assert isinstance(frozen.named["third"], Conv)
    assert_close(frozen(x), model(x), 1e-6)


def test_a_frozen_copy_owns_its_arrays():
    model, x = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), jnp.ones((2, 4))
    frozen = freeze(model)
    graphdef, state = nnx.split(model)
    jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)(state)
    with pytest.raises(RuntimeError, match="deleted"):
        nnx.merge(graphdef, state)(x).block_until_ready()
    assert np.isfinite(frozen(x)).all()

"""Branches become one convolution with equal outputs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax import freeze
from dcls_jax.models.fastvit import FastViT, MultiBranch
from dcls_jax.models.fusion import Filter, Fusible, identity, reparameterise
from dcls_jax.models.norms import BatchNorm
from tests.golden import load


def shapes(model: nnx.Module) -> dict[tuple, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("case", ["fastvit_base", "fastvit_dcls_v1"])
def test_frozen_and_reparameterised_models_give_the_same(case, assert_close):
    model, expected = load(case)
    training = nnx.clone(model)
    training.train()
    fused = reparameterise(training)
    for same in (freeze(model), fused, reparameterise(freeze(model))):
        assert_close(same(expected["image"]), expected["logits"], 1e-5)
    assert not any(isinstance(module, Fusible) for _, module in nnx.iter_modules(fused))
    assert any(isinstance(module, Fusible) for _, module in nnx.iter_modules(training))
    built = nnx.eval_shape(lambda: FastViT(replace(model.config, fused=True), rngs=nnx.Rngs(0)))
    assert shapes(fused) == shapes(built) == shapes(reparameterise(fused))

    activations = model.features(expected["image"], upto="stages.2")

    def gradients(model: FastViT) -> jax.Array:
        return jax.grad(lambda a: (model.head(a, start="stages.2") * expected["one_hot"]).sum())(activations)

    assert_close(gradients(fused), gradients(model), 1e-5)


def test_branches_of_several_channels_a_group_fuse(assert_close):
    branches = MultiBranch(6, 6, (5, 3, 1), groups=3, rngs=nnx.Rngs(0))
    for i, (_, norm) in enumerate((p, m) for p, m in nnx.iter_modules(branches) if isinstance(m, BatchNorm)):
        for j, leaf in enumerate((norm.scale, norm.bias, norm.mean, norm.var)):
            leaf[...] = jnp.asarray(np.random.default_rng(4 * i + j).uniform(0.2, 2, 6), jnp.float32)
    x = np.random.default_rng(0).normal(size=(2, 8, 10, 6)).astype(np.float32)
    assert_close(reparameterise(branches)(x), branches(x), 1e-5)


def test_filters_add_as_their_outputs_do():
    filter = identity(4, 2) * 3 - Filter(jnp.ones((3, 3, 2, 4)), jnp.arange(4.0))
    assert filter.kernel[1, 1].tolist() == [[2, -1, 2, -1], [-1, 2, -1, 2]]
    assert filter.kernel.sum() == 4 * 3 - 3 * 3 * 2 * 4
    assert filter.bias.tolist() == [0, -1, -2, -3]

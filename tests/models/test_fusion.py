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
from tests.conftest import slow
from tests.golden import load


def shapes(model: nnx.Module) -> dict[tuple, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("case", [slow("fastvit_base"), "fastvit_dcls_v1"])
def test_frozen_and_reparameterised_models_give_the_same(case, assert_close):
    model, expected = load(case)
    training = nnx.clone(model)
    training.train()

    @jax.jit
    def logits_and_gradients(model, training, x, one_hot):
        fused, frozen = reparameterise(training), freeze(model)
        activations = model.features(x, upto="stages.2")

        def gradients(model: FastViT) -> jax.Array:
            return jax.grad(lambda a: (model.head(a, start="stages.2") * one_hot).sum())(activations)

        return [same(x) for same in (frozen, fused, reparameterise(frozen))], gradients(fused), gradients(model)

    logits, *gradients = logits_and_gradients(model, training, expected["image"], expected["one_hot"])
    for same in logits:
        assert_close(same, expected["logits"], 1e-5)
    assert_close(*gradients, 1e-5)
    fused = nnx.eval_shape(reparameterise, training)
    assert not any(isinstance(module, Fusible) for _, module in nnx.iter_modules(fused))
    assert any(isinstance(module, Fusible) for _, module in nnx.iter_modules(training))
    built = nnx.eval_shape(lambda: FastViT(replace(model.config, fused=True), rngs=nnx.Rngs(0)))
    assert shapes(fused) == shapes(built) == shapes(nnx.eval_shape(reparameterise, fused))


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

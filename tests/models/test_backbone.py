"""Models as chains of named layers, cut anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.conftest import normal, random_model
from tests.models.small import SOME, small


@pytest.fixture(params=SOME)
def name(request):
    return request.param


@pytest.fixture
def images():
    return normal(2, 32, 32, 3)


def test_unknown_cuts_name_the_nearest():
    model = small("convnext_tiny", depths=(1, 1, 2), dims=(8, 8, 8))
    with pytest.raises(ValueError, match=r"no layer 'stages\.4' in ConvNeXt; the nearest are stages\.\d"):
        model.features(jnp.zeros((1, 32, 32, 3)), upto="stages.4")
    assert "stages.2.blocks.1" in model.layer_names()


@pytest.mark.slow
def test_activations_of_all_stages_in_one_pass(name, images):
    model = random_model(lambda: small(name))
    at_once = jax.jit(lambda model, x: model.intermediates(x))(model, images)
    assert list(at_once) == ["stages.0", "stages.1"]
    for cut, activation in at_once.items():
        np.testing.assert_allclose(activation, jax.jit(lambda m, x: m.features(x, cut))(model, images), 1e-5, 1e-5)  # noqa: B023
    traced = jax.make_jaxpr(lambda model, x: model.intermediates(x, ["stages.1", "stem", "stages.0"]))(model, images)
    once = jax.make_jaxpr(lambda model, x: model.features(x, "stages.1"))(model, images)
    assert len(traced.jaxpr.eqns) == len(once.jaxpr.eqns)
    with pytest.raises(ValueError, match=r"no layer 'stages\.7'"):
        model.intermediates(images, ["stages.7"])


def test_a_stage_is_its_layers(name, images):
    model = random_model(lambda: small(name))

    @jax.jit
    def through(model, x):
        x = model.stem(x)
        for stage in model.stages:
            x = stage(x)
        return x

    np.testing.assert_allclose(
        through(model, images), jax.jit(lambda m, x: m.features(x, "stages.1"))(model, images), 1e-5, 1e-5
    )


@pytest.mark.parametrize("name", ["convnext_tiny", "caformer_s18", "fastvit_sa24"])
def test_where_pixels_stay_in_their_rows_the_numbers_are_the_same(name, images, monkeypatch):
    graph, state = nnx.split(random_model(lambda: small(name)))

    def loss(state):
        return jnp.square(nnx.merge(graph, state, copy=True)(images)).sum()

    def value_and_gradients():
        return jax.jit(jax.value_and_grad(lambda state: loss(state), allow_int=True))(state)

    here = value_and_gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    there = value_and_gradients()
    for a, b in zip(*map(jax.tree.leaves, (here, there)), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())

"""Models by name."""

import jax
import numpy as np
import pytest
from flax import nnx

from dcls_jax import DclsConfig
from dcls_jax.models import create_model, list_models
from tests.conftest import normal, random_model, slow


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(ValueError, match="nearest are convnext_tiny"):
        create_model("convnext_tiny2")
    with pytest.raises(ValueError, match="width is not a setting of convnext_tiny, which has depths, dims"):
        create_model("convnext_tiny", width=3)
    with pytest.raises(ValueError, match="weights are published for dcls True or False"):
        create_model("convnext_tiny", dcls=DclsConfig(3, 7, "v1"), weights="published")


forward = jax.jit(lambda model, x: model(x))


@jax.jit
def forward_and_gradients(model, x):
    """Logits, gradients, and the model with its random state moved on."""

    def loss(model):
        logits = model(x)
        return (logits**2).sum(), logits

    gradients, logits = nnx.grad(loss, has_aux=True)(model)
    return logits, gradients, model


@pytest.mark.parametrize("dcls", [slow(False), True])
@pytest.mark.parametrize("name", [name if name == "convnext_tiny" else slow(name) for name in list_models()])
def test_stochastic_depth_trains_and_evaluation_is_deterministic(name, dcls):
    config = {"depths": (1, 1), "dims": (8, 32), "num_classes": 4}  # heads of 32 in the stage that attends
    config |= {"dcls": DclsConfig(3, 5, "v1")} if dcls else {}
    config |= {"drop_path_rate": 0.5} if name != "resnet50" else {}
    if "former" in name:
        config["token_mixers"] = ("convolution", "attention" if name.startswith("caformer") else "convolution")
    model = random_model(lambda: create_model(name, **config))
    x = normal(4, 64, 64, 3)
    np.testing.assert_array_equal(forward(model, x), forward(model, x))
    model.train()
    logits, gradients, moved = forward_and_gradients(model, x)
    others, _, _ = forward_and_gradients(moved, x)
    if name != "resnet50":
        assert not np.array_equal(logits, others)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    model.eval()
    np.testing.assert_array_equal(forward(model, x), forward(model, x))

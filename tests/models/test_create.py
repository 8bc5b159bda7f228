"""Models by name, their cuts, transform and description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dcls_jax import DclsConfig
from dcls_jax.models import create_model, list_models, preprocess
from dcls_jax.models.describe import describe
from tests.conftest import normal, random_model

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 8, 8, 8), "num_classes": 4}
GIGA_MACS = {  # of the originals at 224 x 224, kernels constructed
    ("convnext_tiny", False): 4.456,
    ("convnext_tiny", True): 4.970,
    ("convnext_small", True): 9.524,
    ("convnext_base", False): 15.355,
}


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(ValueError, match="nearest are convnext_tiny"):
        create_model("convnext_tiny2")
    with pytest.raises(ValueError, match="width is not a setting of convnext_tiny, which has depths, dims"):
        create_model("convnext_tiny", width=3)
    with pytest.raises(ValueError, match="weights are published for dcls True or False"):
        create_model("convnext_tiny", dcls=DclsConfig(3, 7, "v1"), weights="published")


def test_unknown_cuts_name_the_nearest():
    model = random_model(lambda: create_model("convnext_tiny", **SMALL))
    with pytest.raises(ValueError, match=r"no layer 'stages\.4' in ConvNeXt; the nearest are stages\.\d"):
        model.features(jnp.zeros((1, 32, 32, 3)), upto="stages.4")
    assert "stages.2.blocks.1" in model.layer_names()


forward = jax.jit(lambda model, x: model(x))


@jax.jit
def forward_and_gradients(model, x):
    """Logits, gradients, and the model with its random state moved on."""

    def loss(model):
        logits = model(x)
        return (logits**2).sum(), logits

    gradients, logits = nnx.grad(loss, has_aux=True)(model)
    return logits, gradients, model


@pytest.mark.parametrize("dcls", [False, True])
@pytest.mark.parametrize("name", list_models())
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


def test_preprocess_resizes_the_shorter_side_and_crops_the_centre():
    model = random_model(lambda: create_model("convnext_tiny", **SMALL))
    gradient = np.tile(np.arange(300, dtype=np.uint8)[None, :, None], (200, 1, 3))
    x = preprocess(Image.fromarray(gradient), model)
    assert x.shape == (1, 224, 224, 3)
    assert x.dtype == np.float32
    pixels = x[0] * np.array(model.transform.std) + np.array(model.transform.mean)
    centre = 255 * pixels[112, 111:113, 0].mean()
    assert centre == pytest.approx(gradient[0, 149:151, 0].mean(), abs=1.5)
    grey = preprocess([Image.new("L", (50, 80), 128)] * 2, model)
    np.testing.assert_allclose(
        grey[1, 0, 0], (128 / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], 1e-5
    )


@pytest.mark.parametrize(("name", "dcls"), GIGA_MACS)
def test_description_counts_the_originals_macs(name, dcls):
    description = describe(name, dcls=dcls, size=224)
    assert round(description.macs / 1e9, 3) == GIGA_MACS[name, dcls]
    assert description.checkpoint

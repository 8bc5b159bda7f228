"""Raw maps of pytorch-grad-cam 1.5.7 on the original models, at the end of the third stage."""

from functools import partial

import jax
import numpy as np
import pytest

from dcls_jax.cam.gradient import (
    elementwise,
    grad_cam,
    grad_cam_pp,
    hires_cam,
    layer_cam,
    shapley_cam,
    xgrad_cam,
)
from dcls_jax.models import ConvNeXt
from tests import golden

pytestmark = pytest.mark.optimised

METHODS = {
    "GradCAM": grad_cam,
    "HiResCAM": hires_cam,
    "GradCAMElementWise": elementwise,
    "XGradCAM": xgrad_cam,
    "LayerCAM": layer_cam,
    "GradCAMPlusPlus": partial(grad_cam_pp, epsilon=1e-6),
    "ShapleyCAM": shapley_cam,
}


@pytest.fixture(scope="module", params=golden.PEERS)
def case(request):
    """Our maps of every method, compiled at once, and theirs."""
    model, example = golden.load(request.param)

    @jax.jit
    def maps(model, images, targets):
        return {name: method(model, images, targets, layer="stages.2") for name, method in METHODS.items()}

    ours = maps(model, example["image"], example["one_hot"])
    return model, ours, golden.peer_maps(request.param)


@pytest.mark.parametrize("name", METHODS)
def test_raw_maps(case, name, assert_close):
    model, ours, theirs = case
    if isinstance(model, ConvNeXt) and name == "HiResCAM":
        # The layer normalisation over channels that follows makes sum_k g_k A_k vanish in every cell, for both.
        scale = np.abs(theirs["GradCAMElementWise.raw"]).max()
        for maps in (ours[name], theirs[f"{name}.raw"]):
            assert np.abs(maps).max() < 1e-5 * scale
    else:
        assert_close(ours[name], theirs[f"{name}.raw"], 1e-4)

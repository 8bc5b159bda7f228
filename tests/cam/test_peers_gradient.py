"""Raw maps of pytorch-grad-cam 1.5.7 on the original models, at the end of the third stage."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dcls_jax import DclsConfig
from dcls_jax.cam.gradient import (
    elementwise,
    grad_cam,
    grad_cam_pp,
    hires_cam,
    layer_cam,
    shapley_cam,
    xgrad_cam,
)
from dcls_jax.models import create_model
from tests.conftest import DATA

pytestmark = pytest.mark.optimised

NAMES = {"convnext": "convnext_tiny", "resnet": "resnet50"}
METHODS = {
    "GradCAM": grad_cam,
    "HiResCAM": hires_cam,
    "GradCAMElementWise": elementwise,
    "XGradCAM": xgrad_cam,
    "LayerCAM": layer_cam,
    "GradCAMPlusPlus": partial(grad_cam_pp, epsilon=1e-6),
    "ShapleyCAM": shapley_cam,
}


@pytest.fixture(scope="module", params=["convnext_base", "convnext_dcls_v1", "resnet_base", "resnet_dcls_v1"])
def case(request):
    """Our maps of every method, compiled at once, and theirs."""
    spec = json.loads((DATA / "golden" / "index.json").read_text())[request.param]
    config = {key: value for key, value in spec["config"].items() if value is not None}
    dcls = DclsConfig(**spec["dcls"]) if spec["dcls"] else False
    weights, expected, peer = (
        DATA / "golden" / f"{request.param}.{kind}.safetensors" for kind in ("weights", "expected", "peer_cams")
    )
    model = create_model(NAMES[spec["variant"]], dcls=dcls, weights=weights, **config)
    example = load_file(expected)

    @jax.jit
    def maps(model, images, targets):
        return {name: method(model, images, targets, layer="stages.2") for name, method in METHODS.items()}

    ours = maps(model, example["image"].transpose(0, 2, 3, 1), example["one_hot"])
    return spec["variant"], ours, load_file(peer)


@pytest.mark.parametrize("name", METHODS)
def test_raw_maps(case, name, assert_close):
    variant, ours, theirs = case
    if variant == "convnext" and name == "HiResCAM":
        # The layer normalisation over channels that follows makes sum_k g_k A_k vanish in every cell, for both.
        scale = np.abs(theirs["GradCAMElementWise.raw"]).max()
        for maps in (ours[name], theirs[f"{name}.raw"]):
            assert np.abs(maps).max() < 1e-5 * scale
    else:
        assert_close(ours[name], theirs[f"{name}.raw"], 1e-4)

"""Small models with random weights against the original PyTorch code: logits, activations, gradients, maps."""

import json

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

from dcls_jax import DclsConfig, freeze
from dcls_jax.cam import activations_and_gradients, study_maps
from dcls_jax.models import create_model
from tests.conftest import DATA

CASES = json.loads((DATA / "golden" / "index.json").read_text())
NAMES = {
    "resnet": "resnet50",
    "convnext": "convnext_tiny",
    "caformer": "caformer_s18",
    "convformer": "convformer_s18",
    "fastvit": "fastvit_sa24",
}


def channels_last(array, variant):
    """The MetaFormers' activations are recorded channels-last already."""
    return array if variant in ("caformer", "convformer") else array.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model with its weights, what it should give, and whose code gave it."""
    spec = CASES[request.param]
    config = {key: value for key, value in spec["config"].items() if value is not None}
    dcls = DclsConfig(**spec["dcls"]) if spec["dcls"] else False
    weights = DATA / "golden" / f"{request.param}.weights.safetensors"
    model = create_model(NAMES[spec["variant"]], dcls=dcls, weights=weights, **config)
    expected = load_file(DATA / "golden" / f"{request.param}.expected.safetensors")
    expected["image"] = expected["image"].transpose(0, 2, 3, 1)
    return model, expected, spec["variant"]


def test_logits_activations_and_gradients(case, assert_close):
    model, expected, variant = case
    activations, gradients = jax.jit(activations_and_gradients)(model, expected["image"], expected["one_hot"])
    assert_close(model(expected["image"]), expected["logits"])
    assert_close(activations, channels_last(expected["activations"], variant))
    assert_close(gradients, channels_last(expected["gradients"], variant))


@pytest.mark.parametrize("method", ["grad_cam", "threshold_grad_cam"])
def test_study_maps(case, method, assert_close):
    model, expected, _ = case
    maps = jax.jit(study_maps, static_argnames=("method", "size"))
    assert_close(maps(model, expected["image"], expected["one_hot"], method=method, size=None), expected[method])
    if f"{method}_224" in expected:
        labels = expected["one_hot"].argmax(1)
        assert_close(maps(model, expected["image"], labels, method=method)[:1], expected[f"{method}_224"])


def test_freezing_changes_nothing(case, assert_close):
    model, expected, _ = case
    assert_close(freeze(model)(expected["image"]), expected["logits"])


def test_every_cut_leads_to_the_same_logits(case, assert_close):
    model, expected, _ = case
    x = jnp.asarray(expected["image"][:1])
    for name in model.layer_names():
        assert_close(model.head(model.features(x, upto=name), start=name), expected["logits"][:1])

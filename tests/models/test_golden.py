"""Small models with random weights against the original PyTorch code: logits, activations, gradients, maps."""

import json
from functools import partial, partialmethod
from unittest.mock import patch

import jax
import pytest
from safetensors.numpy import load_file

from dcls_jax import DclsConfig, freeze
from dcls_jax.cam import activations_and_gradients, study_maps
from dcls_jax.cam.explain import STUDY
from dcls_jax.models import create_model
from tests.conftest import DATA

pytestmark = pytest.mark.optimised

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
    """What a model with given weights gives, all from one program, what it should give, and whose code says so."""
    spec = CASES[request.param]
    config = {key: value for key, value in spec["config"].items() if value is not None}
    dcls = DclsConfig(**spec["dcls"]) if spec["dcls"] else False
    weights = DATA / "golden" / f"{request.param}.weights.safetensors"
    model = create_model(NAMES[spec["variant"]], dcls=dcls, weights=weights, **config)
    expected = load_file(DATA / "golden" / f"{request.param}.expected.safetensors")
    expected["image"] = expected["image"].transpose(0, 2, 3, 1)
    enlarged = tuple(method for method in STUDY if f"{method}_224" in expected)
    return everything(model, expected["image"], expected["one_hot"], enlarged), expected, spec["variant"]


def layers_once(model, results, layers):
    """The layers, traced once for each input: cuts have most of the way in common, and compiling takes long."""

    def once(name, layer):
        def call(x):
            if (name, id(x)) not in results:
                results[name, id(x)] = layer(x), x  # x is kept, so that no other gets its id
            return results[name, id(x)][0]

        return call

    return [(name, once(name, layer)) for name, layer in layers]


@partial(jax.jit, static_argnames="enlarged")
def everything(model, images, one_hot, enlarged):
    activations, gradients = activations_and_gradients(model, images, one_hot)
    with patch.object(type(model), "_layers", partialmethod(layers_once, {}, model._layers())):
        cuts = {name: model.head(model.features(images, upto=name), start=name) for name in model.layer_names()}
    maps = {method: study_maps(model, images, one_hot, method=method, size=None) for method in STUDY}
    labels = one_hot.argmax(1)
    return {
        "logits": model(images),
        "activations": activations,
        "gradients": gradients,
        "frozen": freeze(model)(images),
        "cuts": cuts,
        **maps,
        **{f"{method}_224": study_maps(model, images, labels, method=method) for method in enlarged},
    }


def test_logits_activations_and_gradients(case, assert_close):
    ours, expected, variant = case
    assert_close(ours["logits"], expected["logits"])
    assert_close(ours["activations"], channels_last(expected["activations"], variant))
    assert_close(ours["gradients"], channels_last(expected["gradients"], variant))


@pytest.mark.parametrize("method", ["grad_cam", "threshold_grad_cam"])
def test_study_maps(case, method, assert_close):
    ours, expected, _ = case
    assert_close(ours[method], expected[method])
    if f"{method}_224" in expected:
        assert_close(ours[f"{method}_224"][:1], expected[f"{method}_224"])


def test_freezing_changes_nothing(case, assert_close):
    ours, expected, _ = case
    assert_close(ours["frozen"], expected["logits"])


def test_every_cut_leads_to_the_same_logits(case, assert_close):
    ours, expected, _ = case
    for logits in ours["cuts"].values():
        assert_close(logits, expected["logits"])

"""Small models with random weights against the original PyTorch code: logits, activations, gradients, maps."""

from functools import partial, partialmethod
from unittest.mock import patch

import jax
import pytest

from dcls_jax import DclsConfig, freeze
from dcls_jax.cam import activations_and_gradients
from dcls_jax.eval.study import STUDY, study_maps
from tests import golden
from tests.conftest import slow

pytestmark = pytest.mark.optimised

QUICK = {"resnet_dcls_v1", "convnext_dcls_v1", "caformer_dcls_v1", "convformer_dcls_v0", "fastvit_dcls_v1"}


@pytest.fixture(scope="module", params=[name if name in QUICK else slow(name) for name in golden.CASES])
def case(request):
    """What a model with given weights gives, all from one program, and what it should give."""
    model, expected = golden.load(request.param)
    enlarged = tuple(method for method in STUDY if f"{method}_224" in expected)
    return everything(model, expected["image"], expected["one_hot"], enlarged), expected


def layers_once(model, results, layers):
    """The layers, traced once for each input: cuts and maps have most of the way in common; tracing takes long."""

    def once(name, layer):
        def call(x):
            if (name, id(x)) not in results:
                results[name, id(x)] = layer(x), x  # x is kept, so that no other gets its id
            return results[name, id(x)][0]

        return call

    return [(name, once(name, layer)) for name, layer in layers]


@partial(jax.jit, static_argnames="enlarged")
def everything(model, images, one_hot, enlarged):
    frozen, labels = freeze(model)(images), one_hot.argmax(1)
    with patch.object(type(model), "_layers", partialmethod(layers_once, {}, model._layers())):
        activations, gradients = activations_and_gradients(model, images, one_hot)
        return {
            "logits": model(images),
            "activations": activations,
            "gradients": gradients,
            "frozen": frozen,
            "cuts": {name: model.head(model.features(images, upto=name), start=name) for name in model.layer_names()},
            **{method: study_maps(model, images, one_hot, method=method, size=None) for method in STUDY},
            **{f"{method}_224": study_maps(model, images, labels, method=method) for method in enlarged},
        }


def test_logits_activations_and_gradients(case, assert_close):
    ours, expected = case
    for name in ("logits", "activations", "gradients"):
        assert_close(ours[name], expected[name], 1e-5)


@pytest.mark.parametrize("method", ["grad_cam", "threshold_grad_cam"])
def test_study_maps(case, method, assert_close):
    ours, expected = case
    assert_close(ours[method], expected[method], 2e-5)
    if f"{method}_224" in expected:
        assert_close(ours[f"{method}_224"][:1], expected[f"{method}_224"], 2e-5)


def test_freezing_changes_nothing(case, assert_close):
    ours, expected = case
    assert_close(ours["frozen"], expected["logits"], 1e-5)


def test_every_cut_leads_to_the_same_logits(case, assert_close):
    ours, expected = case
    for logits in ours["cuts"].values():
        assert_close(logits, expected["logits"], 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "dcls"), [("resnet50", None), ("fastvit_sa24", DclsConfig(3, 5, "v1"))])
def test_what_is_recorded_is_met(name, dcls, tmp_path, assert_close):
    recorder = pytest.importorskip("tests.record_golden", exc_type=ImportError)

    config = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64], "num_classes": 10}
    original = recorder.torch_model(name, dcls, seed=0, **config)
    recorder.record(tmp_path, "small", original, name, config, dcls)
    model, expected = golden.load("small", tmp_path)
    ours = everything(model, expected["image"], expected["one_hot"], ())
    for key in ours.keys() & expected.keys():
        assert_close(ours[key], expected[key])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["caformer_s18", "fastvit_sa24"])
def test_keys_are_recorded_as_they_are_committed(name, tmp_path):
    recorder = pytest.importorskip("tests.record_golden", exc_type=ImportError)

    recorder.record_keys(tmp_path / "keys.txt", recorder.torch_model(name, False))
    assert (tmp_path / "keys.txt").read_text() == (golden.DATA / "keys" / f"{name}_timm_base.txt").read_text()

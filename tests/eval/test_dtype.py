"""Models that compute in bfloat16: what is made of them is float32, and what is kept says so."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_cli import run

from dcls_jax.cam import explain, grad_cam
from dcls_jax.cam.model import output_of, split
from dcls_jax.eval import clickme, demo
from dcls_jax.eval.results import ResultsError
from dcls_jax.eval.suite import Plan, load, parse
from dcls_jax.eval.suite import run as cells
from tests.conftest import normal

IMAGES, LABELS = normal(3, 224, 224, 3), jnp.array([0, 4, 9])


def halved(seed: int = 0) -> tiny.Tiny:
    model = tiny.Tiny(seed)
    model.set_attributes(dtype="bfloat16")
    return model


def test_maps_and_scores_of_a_model_in_bfloat16_are_float32() -> None:
    model = halved()
    activations, head = split(model, IMAGES)
    exact = model.features(IMAGES)
    assert (exact.dtype, activations.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(activations, exact.astype(jnp.float32))
    assert head(activations).dtype == output_of(model, IMAGES).dtype == jnp.float32
    gradients = jax.grad(lambda a: model.head(a)[jnp.arange(3), LABELS].sum())(exact)
    products = np.asarray(exact, np.float32) * np.asarray(gradients, np.float32).mean((1, 2), keepdims=True)
    made = grad_cam(model, IMAGES, LABELS)
    np.testing.assert_allclose(made, products.sum(-1), rtol=1e-5, atol=1e-6)  # bfloat16 would have 8e-3
    for method in ("score_cam", "layer_cam", "input_x_gradient"):
        assert explain(model, IMAGES, LABELS, method=method).dtype == jnp.float32


def test_a_folder_holds_one_dtype(shards: Path, tmp_path: Path) -> None:
    options = {"batch_size": 8, "out": tmp_path / "run", "progress": False}
    exact = clickme.evaluate(tiny.Tiny(), shards, **options)  # type: ignore[arg-type]
    with pytest.raises(ResultsError, match=r"arguments\.dtype: 'float32' there, 'bfloat16' now"):
        clickme.evaluate(halved(), shards, **options)  # type: ignore[arg-type]
    half = clickme.evaluate(halved(), shards, **options | {"out": tmp_path / "half"})  # type: ignore[arg-type]
    assert half.per_image.dtype == np.float32
    assert 0 < np.nanmax(np.abs(half.per_image - exact.per_image)) < 0.1


def test_the_command_builds_evaluates_and_names_the_model_in_its_dtype(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: Path
) -> None:
    monkeypatch.setattr("dcls_jax.models.create_model", lambda *_, dtype, **__: {"bfloat16": halved}[dtype]())
    options = ["--model", "convnext_tiny", "--dcls", "--dtype", "bfloat16", "--batch-size", 8, "--out", tmp_path]
    assert run(monkeypatch, "eval", "clickme", shards, *options) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name == "clickme-convnext_tiny_bfloat16_dcls-grad_cam-both"
    arguments = json.loads((folder / "run.json").read_text())["arguments"]
    assert (arguments["name"], arguments["dtype"]) == ("convnext_tiny_bfloat16_dcls", "bfloat16")
    with np.load(folder / "part-000000.npz") as part:
        assert part["aligned.spearman"].dtype == np.float32


SUITE = """
dtype: bfloat16
models:
  - {sample: convnext}
  - {sample: convnext_dcls}
  - {model: resnet50, called: ours}
evaluations:
  - {metric: accuracy, data: sample, first: 8, models: [convnext_dcls]}
"""


def test_a_suite_says_its_dtype_and_the_command_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    half, exact = (parse(SUITE, "s.yaml", tmp_path, dtype) for dtype in (None, "float32"))
    assert [model.called for model in half.models] == ["convnext_bfloat16", "convnext_bfloat16_dcls", "ours_bfloat16"]
    assert [model.called for model in exact.models] == ["convnext", "convnext_dcls", "ours"]
    assert {model.dtype for model in load("demo", "bfloat16").models} == {"bfloat16"}
    with pytest.raises(ValueError, match=r"line 2: dtype 'float61' is not known"):
        parse(SUITE.replace("bfloat16", "float61"), "s.yaml", tmp_path)
    monkeypatch.setattr(cells, "weights_hash", lambda model, download: "same")
    of_half, of_exact = (Plan(suite, tmp_path) for suite in (half, exact))
    assert len({cell.hash for plan in (of_half, of_exact) for cell in plan.cells}) == 2
    for model in (half.models[1], exact.models[1]):
        features = jax.eval_shape(lambda built: built.features(IMAGES), cells.build(model))
        assert features.dtype == model.dtype
    assert demo.shuffled_model(dtype="bfloat16").fc.dtype == "bfloat16"

"""Sanity checks: which layers become random and how, and the run against a plain loop over pictures."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

import dcls_jax.models
from dcls_jax import DclsConfig, freeze
from dcls_jax.cam import METHODS, resize
from dcls_jax.eval import Settings, cli, demo, sanity
from dcls_jax.eval.metric import Result
from dcls_jax.eval.randomisation import layers_of
from dcls_jax.eval.report import print_results
from dcls_jax.eval.status import Status
from dcls_jax.models import Backbone, create_model
from tests.conftest import random_model, slow
from tests.models.small import ONE, small

KEY = jax.random.key(3)


def leaves(model: nnx.Module) -> dict[str, np.ndarray]:
    """Parameters and statistics by dotted path."""
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def changed(a: nnx.Module, b: nnx.Module) -> set[str]:
    here, there = leaves(a), leaves(b)
    assert here.keys() == there.keys()
    return {path for path in here if not np.array_equal(here[path], there[path])}


@pytest.fixture(scope="module")
def model() -> Backbone:
    """Two stages with DCLS, of one and two blocks."""
    config = {"depths": (1, 2), "dims": (4, 8), "num_classes": 5, "dcls": DclsConfig(3, 5, "gauss")}
    built: Backbone = random_model(lambda: create_model("convnext_tiny", **config))  # type: ignore[arg-type,assignment]
    return built


# from the head down, with the parts of `model` that each has
LAYERS = {
    "head": ("fc", "norm"),
    "stages.1.blocks.1": ("stages.1.blocks.1",),
    "stages.1.blocks.0": ("stages.1.blocks.0",),
    "stages.1.positions": ("stages.1.positions",),
    "stages.1.downsample": ("stages.1.downsample",),
    "stages.0.blocks.0": ("stages.0.blocks.0",),
    "stages.0.positions": ("stages.0.positions",),
    "stem": ("stem",),
}


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_layers_become_random_from_the_head_down(order: str, model: Backbone) -> None:
    before = leaves(model)
    steps = list(sanity.randomise(model, order=order, key=KEY))  # type: ignore[arg-type]
    assert [name for name, _ in steps] == list(LAYERS)
    for i, (name, copy) in enumerate(steps):
        random = [name] if order == "independent" else [*LAYERS][: i + 1]
        parts = tuple(f"{part}." for layer in random for part in LAYERS[layer])
        assert changed(model, copy) == {path for path in before if path.startswith(parts)}
    assert not changed(model, model)
    assert all(np.array_equal(leaves(model)[path], value) for path, value in before.items())


def test_random_layers_are_as_the_models_constructor_makes_them(model: Backbone) -> None:
    fresh = type(model)(model.config, rngs=nnx.Rngs(KEY))  # type: ignore[call-arg,attr-defined]
    *_, (_, last) = sanity.randomise(model, key=KEY)
    assert not changed(last, fresh)
    for name, alone in sanity.randomise(model, order="independent", key=KEY):
        parts = tuple(f"{part}." for part in LAYERS[name])
        assert not any(path.startswith(parts) for path in changed(alone, fresh))
    *_, (_, other) = sanity.randomise(model, key=jax.random.key(4))
    assert {"stem.conv.kernel", "stages.1.positions.P", "fc.kernel"} <= changed(last, other)
    *_, (_, same) = sanity.randomise(model, key=jax.random.PRNGKey(3))  # a key of the older kind
    assert not changed(last, same)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE)
def test_every_family_becomes_random_as_a_whole_and_stays_finite(name: str) -> None:
    trained: Backbone = random_model(lambda: small(name))  # type: ignore[assignment]
    *_, (_, last) = sanity.randomise(trained, key=KEY)
    assert changed(trained, last) == set(leaves(trained))
    paths = [path for those in layers_of(trained).values() for path in those]
    assert len(paths) == len({*paths}) == len(leaves(trained))
    assert jnp.isfinite(jax.jit(lambda model, x: model(x))(last, jnp.ones((1, 64, 64, 3)))).all()


def test_parameters_keep_their_dtype() -> None:
    half = create_model("convnext_tiny", depths=(1,), dims=(4,), param_dtype=jnp.bfloat16)
    for _, copy in sanity.randomise(half, key=KEY):
        assert {value.dtype for value in leaves(copy).values()} == {jnp.dtype(jnp.bfloat16)}


def test_other_models_are_built_by_what_is_given() -> None:
    steps = list(sanity.randomise(tiny.Tiny(0), key=KEY, build=lambda rngs: tiny.Tiny(1)))
    assert [name for name, _ in steps] == ["classifier", "patches"]
    assert not changed(steps[-1][1], tiny.Tiny(1))
    assert changed(steps[0][1], tiny.Tiny(0)) == {"classifier.kernel"}  # its bias is 0 in both

    class Blocks(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.stem = nnx.Linear(2, 3, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
            self.scale = nnx.Param(jax.random.normal(rngs.params(), (3,)))

    copied = nnx.merge(*nnx.split(Blocks(nnx.Rngs(0))))  # as loaded weights are: attributes are in alphabetical order
    names = [name for name, _ in sanity.randomise(copied, key=KEY, build=Blocks)]
    assert names == ["scale", *(f"blocks.{i}" for i in range(10, -1, -1)), "stem"]


def test_what_cannot_be_randomised_is_named_at_once(model: Backbone) -> None:
    with pytest.raises(ValueError, match=r"order \(='up'\) must be one of cascading, independent"):
        sanity.randomise(model, order="up", key=KEY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model \(a Tiny\) is none of this package's: give build, rngs -> model"):
        sanity.randomise(tiny.Tiny(), key=KEY)
    missing = r"model and what build makes differ, first in stages.0.blocks.0.dwconv.kernel: \(5, 5, 1, 4\) in model"
    with pytest.raises(ValueError, match=missing):
        sanity.randomise(freeze(model), key=KEY)


# ----- The run -------------------------------------------------------------------------------------------------------


MEASURES = "spearman", "spearman_abs", "ssim", "hog"
PLAIN, VARIED = 2, [0, 1, 3, 4]


def picture(seed: int) -> np.ndarray:
    """Coarse noise, or a plain one, whose map is constant."""
    if seed == PLAIN:
        return np.full((256, 256, 3), 99, np.uint8)
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8).repeat(32, 0).repeat(32, 1)


SAMPLES = [(picture(seed), seed) for seed in range(5)]


def twin(rngs: nnx.Rngs) -> tiny.Tiny:
    return tiny.Tiny(1)


def run(**options: object) -> tuple[Result, ...]:
    settings = Settings(batch_size=8, progress=False)
    return sanity.evaluate(tiny.Tiny(), SAMPLES, settings, build=twin, **{"method": "hires_cam"} | options)  # type: ignore[arg-type]


def output(model: tiny.Tiny, image: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """What the model sees of a picture, and its logits."""
    images = jnp.asarray(model.transform(Image.fromarray(image)))[None]
    return images, model.head(model.features(images))


def map_of(model: tiny.Tiny, image: np.ndarray, label: int) -> np.ndarray:
    images, _ = output(model, image)
    return np.asarray(resize(METHODS["hires_cam"](model, images, jnp.array([label])), 224))[0]


def alike(copy: tiny.Tiny, image: np.ndarray, label: int, preset: str) -> dict[str, float]:
    """The trained model's map and the copy's, of a picture's label or of the class that each model predicts."""
    models = tiny.Tiny(), copy
    labels = [int(output(model, image)[1].argmax()) if preset == "adebayo" else label for model in models]
    a, b = (map_of(model, image, chosen) for model, chosen in zip(models, labels, strict=True))
    found = sanity.similarity(a / np.abs(a).max(), b / np.abs(b).max(), preset=preset)
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("order", "preset"),
    [
        ("cascading", "standard"),
        slow("independent", "adebayo"),
        slow("cascading", "adebayo"),
        slow("independent", "standard"),
    ],
)
def test_a_run_gives_what_a_loop_over_pictures_gives(order: str, preset: str) -> None:
    results = run(order=order, preset=preset)
    told = {"method": "hires_cam", "order": order, "preset": preset}
    assert [r.labels for r in results] == [told | {"random": name} for name in ("classifier", "patches", "mean")]
    copies = [copy for _, copy in sanity.randomise(tiny.Tiny(), order=order, key=KEY, build=twin)]  # type: ignore[arg-type]
    expected = [[alike(copy, *SAMPLES[i], preset) for i in VARIED] for copy in copies]
    for result, rows in zip(results, expected, strict=False):
        assert result.left_out == {Status.CONSTANT: 1}
        assert np.isnan(result.scores["ssim"][PLAIN])
        for name in MEASURES:
            values = [row[name] for row in rows]
            np.testing.assert_allclose(result.scores[name][VARIED], values, atol=1e-4)
            assert result.values[name] == pytest.approx(np.mean(values), abs=1e-4)
    for name in MEASURES:  # the trained model, which is like itself, is in no mean
        of_steps = np.mean([[row[name] for row in rows] for rows in expected])
        assert results[-1].values[name] == pytest.approx(of_steps, abs=1e-4)


@pytest.mark.slow
def test_entropy_is_compared_when_all_is_random() -> None:
    head, all_random, mean = run()
    assert {*head.values} == {*mean.values} == {*MEASURES}
    *_, (_, copy) = sanity.randomise(tiny.Tiny(), key=KEY, build=twin)
    rises = [sanity.entropy_rise(*(map_of(m, *SAMPLES[i]) for m in (tiny.Tiny(), copy))) for i in VARIED]
    np.testing.assert_allclose(all_random.scores["entropy_rise"][VARIED], rises, atol=2e-3)
    assert all({*result.values} == {*MEASURES} for result in run(order="independent"))


@pytest.mark.parametrize("method", ["random_cam", slow("guided_backprop")])
def test_methods_with_random_numbers_and_with_a_map_for_each_colour(method: str) -> None:
    *_, mean = run(method=method)
    assert mean.counted + sum(mean.left_out.values()) == len(SAMPLES)
    assert mean.counted >= len(VARIED)
    assert all(np.isfinite(mean.values[name]) for name in MEASURES)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"method \(='cams'\) must be one of cam, grad_cam"):
        run(method="cams")
    with pytest.raises(ValueError, match=r"preset \(='rise'\) must be one of standard, adebayo"):
        run(preset="rise")
    with pytest.raises(ValueError, match=r"order \(='up'\) must be"):
        run(order="up")
    with pytest.raises(ValueError, match="model and shuffled differ, first in"):
        sanity.label_randomisation(*demo.sample_models().values(), SAMPLES)


@pytest.mark.long
def test_a_model_that_learned_shuffled_labels_looks_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    trained = json.loads((demo.SAMPLE / "convnext_shuffled.json").read_text())
    assert trained["history"][-1]["accuracy"] > 0.99  # of the labels that it was shown
    assert trained["held_out"]["accuracy"] < 0.15  # of ten classes
    assert (demo.SAMPLE / "convnext_shuffled.safetensors").stat().st_size < 1e6
    pictures, model = demo.sample_pictures()[:16], demo.sample_models()["convnext"]
    settings = Settings(batch_size=8, progress=False)
    found = sanity.label_randomisation(model, demo.shuffled_model(), pictures, settings)
    assert found.labels == {"method": "grad_cam", "preset": "standard", "random": "shuffled labels"}
    assert found.counted == 16
    assert abs(found.values["spearman"]) < 0.2
    print_results([found, *run()])  # a table each
    said = " ".join(capsys.readouterr().out.split())
    assert "Similarity to the maps of shuffled labels, method grad_cam" in said
    assert "Similarity to the trained model's maps, model Tiny" in said, said
    itself = sanity.label_randomisation(model, model, pictures, settings)
    assert itself.values == {
        **{name: pytest.approx(1, abs=1e-5) for name in MEASURES},
        "entropy_rise": pytest.approx(0, abs=1e-5),
    }


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_and_shows_a_row_for_each_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Backbone
) -> None:
    for number in range(10):
        place = tmp_path / "pictures" / f"class {number % 5}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(place / f"{number}.png")
    monkeypatch.setattr(dcls_jax.models, "create_model", lambda *_, **__: model)
    command = ["dcls-jax", "eval", "sanity", str(tmp_path / "pictures"), "--model", "convnext_tiny", "--batch-size"]
    monkeypatch.setattr(sys, "argv", [*command, "8", "--order", "independent", "--out", str(tmp_path)])
    printed = []
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    title = "Similarity to the trained model's maps, model convnext_tiny, method grad_cam, order independent"
    assert title in " ".join(printed[0].split())
    rows = [line.split() for line in printed[0].splitlines() if line]
    assert [row[0] for row in rows if row[-2:] == ["10", "0"]] == [*LAYERS, "mean"]
    assert ["random", "spearman", "abs", "ssim", "hog", "counted", "left", "out"] in rows
    folder = tmp_path / "sanity-convnext_tiny-grad_cam-independent-standard"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["results"]) == {*LAYERS, "mean"}
    assert {*MEASURES} < {*summary["results"]["stem"]}

"""Accuracy: ranks of labels, shares of hits, and its run."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import dcls_jax.models
from dcls_jax.cam import from_functions
from dcls_jax.eval import RecordError, Settings, accuracy, cli
from dcls_jax.eval.data.folder import Folder
from dcls_jax.eval.status import Status
from dcls_jax.models.create import MODELS, published_file
from dcls_jax.models.published import Accuracy

Batch = tuple[np.ndarray, np.ndarray]
# the logits themselves are the picture
LOGITS = from_functions(lambda _, x: x[..., :1], lambda _, a: a[:, 0, :, 0], jnp.zeros(()))


def test_ranks_of_labels_by_hand() -> None:
    logits = np.array([[1, 3, 2, 3], [1, 3, 2, 3], [1, 3, 2, 3], [0, 0, 0, 0]], np.float32)
    assert accuracy.label_ranks(logits, np.array([1, 3, 0, 2])).tolist() == [0, 1, 3, 2]


def test_a_label_of_rank_zero_is_the_prediction_of_argmax_and_ranks_are_those_of_a_stable_sort() -> None:
    logits = np.random.default_rng(0).integers(0, 5, (40, 12)).astype(np.float32)
    order = np.argsort(-logits, axis=1, kind="stable")
    ranks = np.stack([accuracy.label_ranks(logits, np.full(40, label)) for label in range(12)], 1)
    np.testing.assert_array_equal(np.take_along_axis(ranks, order, 1), np.tile(np.arange(12), (40, 1)))
    np.testing.assert_array_equal(np.asarray(ranks).argmin(1), logits.argmax(1))


def batch(logits: list[list[float]], labels: list[int]) -> Batch:
    return np.array(logits, np.float32)[:, None, :, None], np.array(labels)


def test_shares_are_of_all_images_whatever_their_batches() -> None:
    batches = [batch([[0, 1, 2], [0, 1, 2], [2, 1, 0]], [2, 0, 1]), batch([[3, 1, 2]], [0])]
    assert accuracy.top_k(LOGITS, batches, k=(1, 2, 3)) == {1: 0.5, 2: 0.75, 3: 1.0}


@pytest.mark.parametrize(
    ("batches", "k", "message"),
    [
        ([], (1,), "batches hold no images"),
        ([batch([[0, 1, 2]], [3])], (1,), "labels hold 3, but the model has classes 0 to 2"),
        ([batch([[0, 1, 2]], [-1])], (1,), "labels hold -1, but"),
        ([batch([[0, 1, 2]], [1, 2])], (1,), r"labels have shape \(2,\) and dtype int64, expected \(1,\) of int"),
        ([batch([[0, 1, 2]], [1])], (1, 5), r"k \(=\(1, 5\)\) must hold numbers from 1 to the model's 3 classes"),
        ([batch([[0, 1, 2]], [1])], (0,), r"k \(=\(0,\)\) must"),
        ([batch([[0, 1, 2], [0, np.nan, 2]], [1, 2])], (1,), "logits of image 1 of a batch are not finite"),
    ],
)
def test_what_does_not_fit_is_named(
    batches: list[tuple[np.ndarray, np.ndarray]], k: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy.top_k(LOGITS, batches, k=k)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of each of ten classes, of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(20):
        rng = np.random.default_rng(number)
        pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((320 - number, 240)))
        place = root / f"class {number % 10}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return root


@pytest.mark.slow
def test_a_run_gives_the_same_as_batches_in_memory(folder: Path, tmp_path: Path) -> None:
    model, source = tiny.Tiny(), Folder(folder)
    images = np.stack([model.transform(Image.fromarray(sample.image)) for sample in source])  # type: ignore[attr-defined]
    labels = np.array([sample.label for sample in source])  # type: ignore[attr-defined]
    expected = accuracy.top_k(model, [(images[:12], labels[:12]), (images[12:], labels[12:])], k=(1, 3))
    settings = Settings(batch_size=8, progress=False, out=tmp_path)
    result = accuracy.evaluate(model, source, settings, k=(1, 3))  # type: ignore[arg-type]
    assert result.values == {f"top_{number}": pytest.approx(share) for number, share in expected.items()}
    assert 0 < expected[1] < expected[3] < 1
    assert (result.counted, result.left_out, result.labels) == (20, {}, {"transform": "256/224"})
    predictions = np.asarray(model.head(model.features(jnp.asarray(images)))).argmax(1)
    np.testing.assert_array_equal(result.scores["top_1"], predictions == labels)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["results"]["256/224"]["top_3"] == result.values["top_3"]
    again = accuracy.evaluate(model, source, settings, k=(1, 3))  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.scores["top_3"], result.scores["top_3"])


def test_any_pairs_of_picture_and_label_will_do(folder: Path) -> None:
    picture = folder / "class 3" / "3.png"
    pixels = np.asarray(Image.open(picture))
    settings = Settings(batch_size=8, progress=False)
    result = accuracy.evaluate(
        tiny.Tiny(), [(picture, 3), (pixels, 3), (Image.fromarray(pixels), 3)], settings, k=(1, 2)
    )  # type: ignore[arg-type]
    assert len(set(result.scores["top_2"].tolist())) == 1
    for wrong, message in [
        ((pixels.astype(float), 3), "sample 0: images hold an array of shape .* and dtype float64"),
        ((folder / "none.png", 3), "sample 0: .*No such file"),
        ((pixels, 10), "sample 0: label 10, but the model has classes 0 to 9"),
    ]:
        with pytest.raises(RecordError, match=message):
            accuracy.evaluate(tiny.Tiny(), [wrong], settings, k=(1,))  # type: ignore[arg-type]


def test_logits_that_are_not_finite_do_not_count(folder: Path) -> None:
    class Broken(tiny.Tiny):
        def head(self, activations: jax.Array) -> jax.Array:
            logits = super().head(activations)
            return jnp.where(logits.argmax(1, keepdims=True) % 2 == 1, jnp.inf, logits)

    result = accuracy.evaluate(Broken(), Folder(folder), Settings(batch_size=8, progress=False), k=(1,))  # type: ignore[arg-type]
    assert set(result.left_out) == {Status.NOT_FINITE}
    assert 0 < result.counted < 20
    assert np.isnan(result.scores["top_1"]).sum() == 20 - result.counted


def test_a_folder_of_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "picture.png").write_bytes((folder / "class 3" / "3.png").read_bytes())
    with pytest.raises(ValueError, match="samples are a folder of 1 classes, expected the model's 10"):
        accuracy.evaluate(tiny.Tiny(), Folder(tmp_path), Settings(batch_size=8))  # type: ignore[arg-type]


def test_figures_of_published_files_are_known_by_name() -> None:
    for name, (_, variant) in MODELS.items():
        figures = variant.checkpoint.accuracy
        assert figures[-1].source == "timm"
        assert all(80 < figure.top_1 < 85 for figure in figures)
        assert published_file(name, dcls=False, weights="published") is variant.checkpoint
        assert (
            published_file(name, dcls=True, weights=f"here/{variant.dcls_checkpoint.file}") is variant.dcls_checkpoint
        )
        assert published_file(name, dcls=True, weights=Path("here") / variant.checkpoint.file) is None
    assert MODELS["convnext_tiny"][1].dcls_checkpoint.accuracy == (Accuracy("authors", 82.5),)


def test_the_command_shows_what_was_published_beside_what_it_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(dcls_jax.models, "create_model", lambda *_, **__: tiny.Tiny())
    command = ["dcls-jax", "eval", "accuracy", str(folder), "--model", "convnext_tiny", "--batch-size", "8"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    printed = capsys.readouterr().out
    assert "Accuracy, transform 256/224" in printed
    (row,) = [line.split() for line in printed.splitlines() if line.strip().startswith("convnext_tiny")]
    assert row[3:6] == ["0.8210", "0.8207", "0.9585"]
    assert row[6:] == ["20", "0"]
    summary = json.loads((tmp_path / "accuracy-convnext_tiny" / "summary.json").read_text())
    values = summary["results"]["256/224"]
    published = {"top_1_authors": 0.821, "top_1_timm": 0.82066, "top_5_timm": 0.95854}
    assert {name: values[name] for name in published} == pytest.approx(published)
    assert row[1:3] == [f"{values['top_1']:.4f}", f"{values['top_5']:.4f}"]


def test_where_data_are_missing_one_line_says_what_to_put_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["dcls-jax", "eval", "accuracy", str(tmp_path), "--model", "convnext_tiny"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    error = capsys.readouterr().err
    assert error.startswith(f"error: no pictures of classes in {tmp_path}; put a folder for each there")
    assert error.count("\n") == 1

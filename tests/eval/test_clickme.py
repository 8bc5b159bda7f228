"""The ClickMe evaluation: the original loader, the study's scores, and everything that data can do to a run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import stats

from dcls_jax import DclsConfig
from dcls_jax.cam import explain, resize
from dcls_jax.eval import Settings, clickme
from dcls_jax.eval.data.records import RecordError, write_records
from dcls_jax.eval.status import Status
from dcls_jax.eval.study import study_maps
from dcls_jax.models import Transform, create_model
from tests.conftest import arrays_in, slow

pytestmark = [pytest.mark.as_for_users, pytest.mark.optimised]


def test_loader_is_the_original(data: Path) -> None:
    expected = arrays_in(data / "clickme" / "loader_expected.npz")
    samples = list(clickme.load(data / "clickme" / "val-0.tfrecords"))
    assert [sample.label for sample in samples] == expected["labels"].tolist()
    assert [sample.record for sample in samples] == list(range(32))
    for sample, image, heatmap in zip(samples[:3], expected["images"], expected["heatmaps"], strict=True):
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_allclose(sample.heatmap, heatmap, atol=1e-4)


def test_samples_are_batched_by_grain(shards: Path) -> None:
    single, batch = clickme.load(shards), clickme.load(shards).batch(3)[5]
    assert isinstance(batch, clickme.Sample)
    shapes = {name: (value.shape, value.dtype.kind) for name, value in batch._asdict().items()}
    assert shapes == {
        "image": ((3, 224, 224, 3), "f"),
        "heatmap": ((3, 224, 224), "f"),
        "label": ((3,), "i"),
        "file": ((3,), "U"),
        "record": ((3,), "i"),
    }
    for row, sample in enumerate(single[i] for i in range(15, 18)):
        for stacked, value in zip(batch, sample, strict=True):
            np.testing.assert_array_equal(stacked[row], value)
    assert batch.file[0] == str(shards / "val-10.tfrecords")


@pytest.mark.parametrize(
    ("model", "name", "method"),
    [
        ("convnext", "convnext_tiny", "grad_cam"),
        slow("convnext", "convnext_tiny", "threshold_grad_cam"),
        slow("caformer", "caformer_s18", "grad_cam"),
        slow("caformer", "caformer_s18", "threshold_grad_cam"),
    ],
)
def test_study_scores(data: Path, model: str, name: str, method: str) -> None:
    study = json.loads((data / "clickme" / "expected_scores.json").read_text())
    spec, expected = study["models"][model], study["scores"][f"{model}/{method}"]
    config = {key: tuple(spec[key]) for key in ("depths", "dims")}
    weights = data / "clickme" / f"{model}.weights.safetensors"
    built = create_model(name, dcls=DclsConfig(**spec["dcls"]), weights=weights, **config)
    result = clickme.evaluate(
        built, data / "clickme", method=method, protocol="published", batch_size=16, progress=False
    )
    np.testing.assert_allclose(result.per_image, expected["per_image_spearman"], atol=2e-5)
    assert result.alignment == pytest.approx(expected["alignment_score"], abs=2e-6)
    assert (result.images, result.skipped, result.bad_records) == (32, 0, ())


def test_padding_and_constant_maps_do_not_count(shards: Path, whole: clickme.Result) -> None:
    assert whole.per_image.shape == (20,)
    assert np.flatnonzero(np.isnan(whole.per_image)).tolist() == [4]
    assert (whole.images, whole.skipped, whole.bad_records) == (19, 1, ())
    assert whole.mean_spearman == pytest.approx(np.delete(whole.per_image, 4).mean(dtype=np.float64))
    assert whole.alignment == pytest.approx(whole.mean_spearman / 0.65753)
    np.testing.assert_allclose(tiny.evaluate(shards, batch_size=24).per_image, whole.per_image, atol=1e-6)


@pytest.mark.slow
def test_aligned_compares_the_part_that_the_model_saw(shards: Path, whole: clickme.Result) -> None:
    model, sample = tiny.Tiny(), clickme.load(shards)[0]
    pixels = model.transform(Image.fromarray(sample.image.astype(np.uint8)))
    heatmap = np.asarray(study_maps(model, pixels[None], np.array([sample.label])))[0]
    # centred on the same point, 224 / 256 of the field: 14 pixels less on every side, enlarged by 256 / 224
    centre = (np.arange(224) + 0.5) * 224 / 256 + 14 - 0.5
    part = np.stack([np.interp(centre, np.arange(224), row) for row in sample.heatmap])
    part = np.stack([np.interp(centre, np.arange(224), column) for column in part.T], 1)
    expected = stats.spearmanr(heatmap.ravel(), part.ravel()).statistic
    assert whole.per_image[0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hires_cam", "eigen_cam", "smooth_grad", "guided_grad_cam"])
def test_every_method_is_compared_by_its_positive_part(tmp_path: Path, method: str) -> None:
    write_records(tmp_path / "val-0.tfrecords", [tiny.example(i) for i in range(3)])
    model, samples = tiny.Tiny(), list(clickme.load(tmp_path))
    images = np.stack([model.transform(Image.fromarray(sample.image.astype(np.uint8))) for sample in samples])
    key = {"key": jax.random.key(0)} if method == "smooth_grad" else {}
    maps = explain(model, images, np.array([sample.label for sample in samples]), method=method, **key)
    enlarged = resize(np.maximum(maps, 0), 224)
    expected = [
        stats.spearmanr(m.ravel(), sample.heatmap.ravel()).statistic
        for m, sample in zip(np.asarray(enlarged), samples, strict=True)
    ]
    result = tiny.evaluate(tmp_path, method=method, protocol="published")
    np.testing.assert_allclose(result.per_image, expected, atol=2e-4)
    assert result.method == method


@pytest.mark.slow
def test_maps_without_positive_values_or_that_are_not_finite_are_said_to_be(tmp_path: Path) -> None:
    class Odd(tiny.Tiny):
        def head(self, activations: jax.Array) -> jax.Array:
            """Class 1 falls with every activation; nothing is finite of images whose first activation is large."""
            bad = activations[:, 0, 0].max(1, keepdims=True) > 1.5
            logits = super().head(activations).at[:, 1].set(-activations.sum((1, 2, 3)))
            return logits * jnp.where(bad, jnp.nan, 1)

    write_records(tmp_path / "val-0.tfrecords", [tiny.example(i) for i in range(8)])
    images = np.stack([Odd.transform(Image.fromarray(s.image.astype(np.uint8))) for s in clickme.load(tmp_path)])
    expected = [Status.COUNTED, Status.CONSTANT, *[Status.COUNTED] * 6]
    for image in np.flatnonzero(np.asarray(Odd().features(images))[:, 0, 0].max(1) > 1.5):
        expected[image] = Status.NOT_FINITE
    assert set(expected) == {Status.COUNTED, Status.CONSTANT, Status.NOT_FINITE}
    for method in ("hires_cam", "grad_cam", "threshold_grad_cam"):
        result = clickme.evaluate(Odd(), tmp_path, method=method, batch_size=8, progress=False)  # type: ignore[arg-type]
        assert [list(Status)[code] for code in result.status] == expected
        assert result.skipped == 8 - expected.count(Status.COUNTED)


@pytest.mark.slow
def test_protocols_agree_where_nothing_is_cropped(shards: Path, whole: clickme.Result) -> None:
    uncropped = {"transform": Transform(resize=224, crop=224)}
    aligned, published = (tiny.evaluate(shards, protocol=p, **uncropped) for p in ("aligned", "published"))
    np.testing.assert_allclose(aligned.per_image, published.per_image, atol=1e-6)
    assert abs(tiny.evaluate(shards, protocol="published").alignment - whole.alignment) > 1e-4


@pytest.mark.slow
def test_several_protocols_at_once_are_each_as_alone(shards: Path, whole: clickme.Result, tmp_path: Path) -> None:
    settings = Settings(batch_size=8, out=tmp_path, progress=False)
    published, aligned = clickme.evaluate_protocols(tiny.Tiny(), shards, settings=settings)  # type: ignore[arg-type]
    assert (published.protocol, aligned.protocol) == ("published", "aligned")
    np.testing.assert_allclose(aligned.per_image, whole.per_image, atol=1e-6)
    np.testing.assert_allclose(published.per_image, tiny.evaluate(shards, protocol="published").per_image, atol=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["results"]["published"]["alignment"] == published.alignment


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Nine records: the third has a wrong checksum, the fifth is no example, the file ends inside the ninth."""
    path = tmp_path / "val-0.tfrecords"
    records = [tiny.example(i) if i != 4 else b"no example" for i in range(9)]
    write_records(path, records)
    content = bytearray(path.read_bytes())
    content[sum(len(record) + 16 for record in records[:2]) + 100] ^= 1
    path.write_bytes(content[:-10])
    return path


def test_bad_records_are_errors(damaged: Path, shards: Path) -> None:
    with pytest.raises(RecordError, match=r"val-0\.tfrecords, record 8: the file ends"):
        tiny.evaluate(damaged)
    damaged.write_bytes(damaged.read_bytes() + b"\0" * 10)
    with pytest.raises(RecordError, match=r"val-0\.tfrecords, record 2: the checksum of the record's data"):
        tiny.evaluate(damaged)
    with pytest.raises(RecordError, match=r"val-0\.tfrecords, record 4: not a ClickMe example"):
        clickme.load(damaged)[4]


def test_bad_records_are_counted_and_skipped(damaged: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "good.tfrecords", [tiny.example(i) for i in range(8)])
    good, result = tiny.evaluate(tmp_path / "good.tfrecords"), tiny.evaluate(damaged, skip_bad=True)
    assert np.flatnonzero(np.isnan(result.per_image)).tolist() == [2, 4]
    np.testing.assert_array_equal(np.delete(result.per_image, [2, 4]), np.delete(good.per_image, [2, 4]))
    assert (result.images, result.skipped, len(result.bad_records)) == (6, 0, 3)
    assert [line.split(", record ")[1][0] for line in result.bad_records] == ["2", "4", "8"]
    assert [sample.record for sample in clickme.load(damaged, skip_bad=True)] == [0, 1, 3, 5, 6, 7]


def test_wrong_arguments(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"protocol \(='cropped'\) must be"):
        tiny.evaluate(shards, protocol="cropped")
    with pytest.raises(ValueError, match="not_a_method"):
        tiny.evaluate(shards, method="not_a_method")
    with pytest.raises(ValueError, match=r"batch_size \(=0\) must be a multiple"):
        tiny.evaluate(shards, batch_size=0)

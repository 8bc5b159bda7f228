"""Which pictures a report shows, their files, and their place in the page."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pages
import pytest
from PIL import Image

from dcls_jax.eval import ResultsError, gallery
from dcls_jax.eval.report.analysis import analyse
from dcls_jax.eval.report.collection import collect
from dcls_jax.eval.report.galleries import galleries
from dcls_jax.eval.report.page import render
from dcls_jax.models import imagenet_classes

NAN = float("nan")


def sample(record: int) -> gallery.PictureSample:
    """A picture of one shade, its number, with a human map that rises to the right, and a box of one quarter."""
    image = np.full((64, 128, 3), 2 * record, np.uint8)
    return gallery.PictureSample(image, np.tile(np.arange(16.0), (8, 1)), [[64, 32, 127, 63]])


def maps(model: str, method: str, image: np.ndarray, label: int) -> np.ndarray:
    """A map that is all in the upper left, with DCLS in the lower right."""
    map = np.zeros((4, 8))
    map[(3, 7) if model.endswith("_dcls") else (0, 0)] = 5
    return map


def test_pictures_are_chosen_by_rank_among_those_that_count_for_both() -> None:
    a = [0.5, 0.9, NAN, 0.1, 0.7, 0.3]
    b = [0.5, 0.8, 0.0, 0.6, NAN, 0.0]
    picks = [(pick.kind, pick.record) for pick in gallery.choose(a, b, count=1)]
    assert picks == [("best", 1), ("median", 0), ("worst", 3), ("most changed", 3)]
    assert gallery.choose(a, b, count=1)[0] == ("best", 1, 0.9, 0.8)
    lower = [(pick.kind, pick.record) for pick in gallery.choose(a, b, better=-1, count=2)]
    assert lower[:2] == [("best", 3), ("best", 5)]
    assert lower[4:6] == [("worst", 1), ("worst", 0)]
    assert len(gallery.choose(a, b, count=9)) == 4 * 4
    with pytest.raises(ValueError, match=r"count \(=0\) must be at least 1"):
        gallery.choose(a, b, count=0)
    with pytest.raises(ValueError, match=r"a and b must be scores of the same records, got shapes \(6,\) and \(2,\)"):
        gallery.choose(a, b[:2])


def test_a_map_is_the_less_transparent_the_larger_it_is() -> None:
    map = np.tile(np.linspace(-3, 1, 16), (8, 1))
    picture = Image.open(io.BytesIO(gallery.map_picture(map, (32, 64), (10, 20, 30)))).convert("RGBA")
    assert picture.size == (112, 56)
    alpha = np.asarray(picture)[..., 3]
    assert alpha[:, 0].max() == 0
    assert alpha[:, -1].min() == 255
    assert (np.diff(alpha[0].astype(int)) >= 0).all()
    assert np.asarray(picture)[0, -1, :3].tolist() == [10, 20, 30]
    assert (
        np.asarray(Image.open(io.BytesIO(gallery.map_picture(np.ones((2, 2)), (9, 9), (0, 0, 0)))).convert("RGBA"))[
            ..., 3
        ].max()
        == 0
    )
    with pytest.raises(ValueError, match=r"maps must be \(h, w\) of finite values, got one of shape \(2, 2\)"):
        gallery.map_picture([[0, 1], [NAN, 0]], (9, 9), (0, 0, 0))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    pages.pair(tmp_path / "results")
    stored = collect([tmp_path / "results"]).folders
    return gallery.write(tmp_path / "results" / "gallery", stored, sample, maps, count=2)


def test_a_gallery_has_the_pictures_of_its_picks(written: Path) -> None:
    content = json.loads(written.read_text())
    (comparison,) = content["comparisons"]
    assert (comparison["a"], comparison["b"], comparison["method"]) == ("small_dcls", "small", "grad_cam")
    assert [pick["kind"] for pick in comparison["picks"]] == [kind for kind in gallery.KINDS for _ in range(2)]
    records = {str(pick["record"]) for pick in comparison["picks"]}
    assert content["pictures"].keys() == records
    record, picture = next(iter(content["pictures"].items()))
    assert picture["class"] == str(int(record) % 4)
    assert picture["place"] == f"val-0.tfrecords, record {record}"
    assert picture["boxes"] == [[0.5, 0.5, 1.0, 1.0]]
    photo = np.asarray(Image.open(written.parent / picture["image"]))
    assert abs(int(photo.mean()) - 2 * int(record)) <= 1
    alpha = {
        model: np.asarray(Image.open(written.parent / by_method["grad_cam"]).convert("RGBA"))[..., 3]
        for model, by_method in picture["maps"].items()
    }
    assert alpha["small"][0, 0] > alpha["small"][-1, -1] == 0
    assert alpha["small_dcls"][-1, -1] > alpha["small_dcls"][0, 0] == 0


def test_classes_have_names_where_the_model_has_imagenets(tmp_path: Path) -> None:
    pages.write(tmp_path / "a", "small", {"aligned": {"spearman": pages.scores(1)}})
    stored = collect([tmp_path]).folders
    path = gallery.write(tmp_path / "gallery", stored, sample, maps, count=1, num_classes=1000)
    content = json.loads(path.read_text())
    for record, picture in content["pictures"].items():
        assert picture["class"] == imagenet_classes()[int(record) % 4]
    (comparison,) = content["comparisons"]
    assert comparison["a"] == comparison["b"] == "small"
    assert not comparison["paired"]


def test_the_page_holds_the_gallery(written: Path) -> None:
    found = galleries([written.parents[1]])
    assert galleries([written.parents[1] / "small"]) == found  # beside it
    text = render(analyse(collect([written.parents[1]]), resamples=200), found)
    sources = re.findall(r'<img[^>]* src="data:image/(jpeg|png);base64,([^"]+)" alt="([^"]+)"', text)
    assert len(sources) == 8 * 4  # picks: the picture, two maps, people
    files = {file.read_bytes() for file in written.parent.iterdir()}
    assert {base64.b64decode(content) for _, content, _ in sources} <= files
    assert "map of small_dcls by grad_cam" in text
    assert "left: 50.0%; top: 50.0%; width: 50.0%; height: 50.0%" in text


def test_a_gallery_that_lacks_a_file_is_named(written: Path) -> None:
    next(written.parent.glob("*.jpg")).unlink()
    with pytest.raises(ResultsError, match=r"gallery\.json is no gallery .*; write it anew"):
        galleries([written.parent])
    written.write_text('{"pictures": 3}')
    with pytest.raises(ResultsError, match=r"gallery\.json is no gallery .*; write it anew"):
        galleries([written.parent])

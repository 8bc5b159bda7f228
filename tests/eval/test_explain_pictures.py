"""Maps of a user's own pictures: what is opened, said and written."""

import errno
import json
import os
import re
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from dcls_jax.cam.pytree import pytree
from dcls_jax.compilation import compiler_options
from dcls_jax.eval import pictures
from dcls_jax.files import write_file
from dcls_jax.models import Transform
from tests.conftest import arrays_in


@pytree
@dataclass(frozen=True)
class Linear:
    """Finds class 1 the more probable the redder a picture is, then the next class, and all others much less."""

    weights: jax.Array
    transform: Transform = field(default=Transform(16, 16), metadata={"static": True})

    def features(self, images, upto=None):
        return images + 3

    def head(self, activations, start=None):
        return activations.mean((1, 2)) @ self.weights

    def __call__(self, images):
        return self.head(self.features(images))


def linear(classes, likely=1):
    weights = np.zeros((3, classes), np.float32)
    weights[0, likely], weights[0, likely + 1] = 3, 2
    return Linear(weights)


def explain(paths, out, classes=4, likely=1, **options):
    return pictures.explain_pictures(
        linear(classes, likely), paths, out, **{"methods": ["grad_cam"], "name": "linear"} | options
    )


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(100, 256, (20, 20, 3), np.uint8)).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_a_turned_photograph_is_opened_upright(tmp_path):
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(pictures.open_picture(tmp_path / "turned.png"), upright)


def test_a_picture_of_sixteen_bits_is_scaled(tmp_path):
    levels = np.array([[0, 51], [102, 255]])
    Image.fromarray((levels * 257).astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(pictures.open_picture(tmp_path / "deep.png"), np.repeat(levels[..., None], 3, -1))


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:500])
    for name in ("text.png", "cut.png"):
        with pytest.raises(ValueError, match=f"{name} is not a picture that can be read"):
            pictures.open_picture(tmp_path / name)


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is not a picture that can be read \(not a regular file\)"):
        pictures.open_picture(tmp_path / "pipe.png")


def test_a_picture_that_claims_too_many_pixels_is_named(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    pictures.open_picture(picture)  # of 400: Pillow warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(ValueError, match=r"noise\.png is not a picture that can be read \(Image size \(400 pixels\)"):
        pictures.open_picture(picture)


def test_a_thousand_classes_have_names(tmp_path, picture):
    manifest = explain([picture], tmp_path / "out", 1000, 281, top_k=2)
    assert [(row["class"], row["name"]) for row in manifest["pictures"]] == [(281, "tabby"), (282, "tiger cat")]
    assert [pictures.label(row) for row in manifest["pictures"]] == ["tabby", "tiger cat"]
    assert [row["overlays"] for row in manifest["pictures"]] == [
        {"grad_cam": "overlays/noise-281_tabby-grad_cam.png"},
        {"grad_cam": "overlays/noise-282_tiger_cat-grad_cam.png"},
    ]


def test_other_numbers_of_classes_have_none(tmp_path, picture):
    (row,) = explain([picture], tmp_path / "out")["pictures"]
    assert "name" not in row
    assert pictures.label(row) == "class 1"
    assert row["overlays"] == {"grad_cam": "overlays/noise-1-grad_cam.png"}


def test_titles_say_picture_class_and_probability(tmp_path, picture, monkeypatch):
    titles = []
    monkeypatch.setattr(pictures, "show_maps", lambda *_, row_titles, **__: titles.extend(row_titles) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain([picture], tmp_path / "out", 1000, 281)
    (title,) = titles
    assert re.fullmatch(r"noise\.png\ntabby: \d+\.\d%", title)


def test_each_map_is_a_picture_of_its_own(tmp_path, picture):
    out = tmp_path / "out"
    options = {"methods": ["grad_cam", "hires_cam"], "style": "signed", "alpha": 0.5, "colormap": "PiYG"}
    manifest = explain([picture, picture], out, **options)
    files = [file for row in manifest["pictures"] for file in row["overlays"].values()]
    assert files == [f"overlays/noise-1-{name}.png" for name in ("grad_cam", "hires_cam", "grad_cam-2", "hires_cam-2")]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "maps.npz", "maps.png", "overlays"]
    assert sorted(path.name for path in (out / "overlays").iterdir()) == sorted(Path(file).name for file in files)
    maps = arrays_in(out / "maps.npz")
    seen = [np.asarray(Linear.transform.framed(Image.open(picture)))] * 2
    shown = pictures.show_maps(seen, maps, style="signed", alpha=0.5, colormap="PiYG")
    for row, cells in zip(manifest["pictures"], shown.rows, strict=True):
        for file, cell in zip(row["overlays"].values(), cells[1:], strict=True):
            np.testing.assert_array_equal(Image.open(out / file), cell)
    assert json.loads((out / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize(
    "name",
    [
        "price $5 and $6.png",
        "a_{b}^c.png",
        "line\nbreak\x1b.png",
        "写真.png",
        "y" * 200 + ".png",
        os.fsdecode(b"[red]\xff.png"),
    ],
)
def test_pictures_of_any_name_are_explained(tmp_path, picture, name):
    out = tmp_path / "out"
    (row,) = explain([picture.rename(tmp_path / name)], out)["pictures"]
    (file,) = (out / "overlays").iterdir()
    assert f"overlays/{file.name}" == row["overlays"]["grad_cam"]
    assert re.fullmatch(r"[\w.+-]{1,100}", file.name)
    assert json.loads((out / "manifest.json").read_text())["pictures"] == [row]


def test_of_a_picture_is_kept_what_the_model_sees(tmp_path, picture, monkeypatch):
    files = []

    def opened(path):
        assert all(file() is None for file in files)
        files.append(weakref.ref(image := open_picture(path)))
        return image

    open_picture = pictures.open_picture
    monkeypatch.setattr(pictures, "open_picture", opened)
    monkeypatch.setattr(pictures, "show_maps", drawn)
    explain([picture] * 5, tmp_path / "out")
    assert len(files) == 5


def drawn(seen, maps, **_):
    """In place of a grid, of which the drawing takes a second."""
    return SimpleNamespace(png=lambda: b"", rows=[[image] * (1 + len(maps)) for image in seen])


def test_pictures_are_explained_a_few_at_a_time_as_all_at_once(tmp_path, monkeypatch):
    for number in range(7):
        pixels = np.random.default_rng(number).integers(100, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(pictures, "show_maps", drawn)
    paths, sizes = sorted(tmp_path.glob("*.png")), []
    options = {"top_k": 3, "methods": ["grad_cam", "hires_cam"]}
    whole = explain(paths, tmp_path / "whole", **options)
    explain_all = pictures.explain_all
    monkeypatch.setattr(pictures, "_GROUP", 4)
    monkeypatch.setattr(
        pictures, "explain_all", lambda model, images, *a: sizes.append(len(images)) or explain_all(model, images, *a)
    )
    parts = explain(paths, tmp_path / "parts", **options)
    assert sizes == [4] * 6  # of 21 rows
    assert [row | {"probability": 0} for row in parts["pictures"]] == [
        row | {"probability": 0} for row in whole["pictures"]
    ]
    maps = arrays_in(tmp_path / "parts" / "maps.npz")
    for column, expected in arrays_in(tmp_path / "whole" / "maps.npz").items():
        np.testing.assert_allclose(maps[column], expected, rtol=1e-5)


def test_classes_are_predicted_by_a_program_compiled_as_maps_are(tmp_path, picture, monkeypatch):
    expected, jit, options = compiler_options(), jax.jit, []
    monkeypatch.setattr(jax, "jit", lambda *a, **how: options.append(how.get("compiler_options")) or jit(*a, **how))
    pictures._predictions(linear(4))([np.asarray(Image.open(picture).resize((16, 16)))])
    assert options == [expected]


def test_nothing_is_written_where_one_of_many_pictures_is_none(tmp_path, picture):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        explain([picture] * 40 + [tmp_path / "text.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/maps"])
def test_a_folder_that_cannot_be_made_is_named_before_any_work(tmp_path, monkeypatch, out):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pictures, "open_picture", lambda _: pytest.fail("a picture was opened"))
    with pytest.raises(OSError, match=r"/file'$"):
        explain([tmp_path / "missing.png"], tmp_path / out)


def test_a_disk_that_is_full_leaves_no_half_picture(tmp_path, picture, monkeypatch):
    def full(grid):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pictures, "write_file", lambda path, write: write_file(path, full))
    with pytest.raises(OSError, match=r"No space left on device: '.*/overlays/noise-1-grad_cam\.png'"):
        explain([picture], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["maps.png", "overlays"]


def test_many_rows_are_drawn_by_pages(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(pictures, "PAGE", 2)
    explain([picture] * 3, tmp_path / "out")
    heights = [len(np.asarray(Image.open(tmp_path / "out" / name))) for name in ("maps.png", "maps-2.png")]
    assert heights[0] > 1.8 * heights[1]
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 3


@pytest.mark.parametrize(
    "options", [{"style": "bright"}, {"alpha": 2}, {"colormap": "plasm"}, {"style": "contour", "alpha": 0.5}]
)
def test_options_are_checked_before_pictures_are_opened(tmp_path, options):
    with pytest.raises(ValueError, match=re.escape(str(next(reversed(options.values()))))):
        explain([tmp_path / "missing.png"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()

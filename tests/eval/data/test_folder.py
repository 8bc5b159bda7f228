"""Folders of pictures, as torchvision reads them."""

import re
from pathlib import Path

import made
import numpy as np
import pytest
from PIL import Image

from dcls_jax.eval import RecordError
from dcls_jax.eval.data.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes b and a; other files, and a folder without pictures, which is a class all the same."""
    for number, name in enumerate(["b/2.png", "b/10.JPEG", "a/deep/er.bmp", "a/z.png"]):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.picture(number, (5, 6 + number))).save(path)
    (tmp_path / "set" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "set" / "stray.png").write_bytes(b"")
    return tmp_path / "set"


def test_classes_are_folders_in_order(folder: Path) -> None:
    source = Folder(folder)
    assert source.classes == ["a", "b", "empty"]
    samples = [source[i] for i in range(len(source))]
    assert [(sample.name, sample.label) for sample in samples] == [
        ("a/z.png", 0),
        ("a/deep/er.bmp", 0),
        ("b/10.JPEG", 1),
        ("b/2.png", 1),
    ]
    np.testing.assert_array_equal(samples[3].image, made.picture(0, (5, 6)))
    assert source.place(3) == str(folder / "b" / "2.png")


def test_pictures_of_all_modes_are_rgb_and_not_turned(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = Image.fromarray(made.picture(0, (4, 6)))
    for mode in ("L", "P", "CMYK", "1"):
        image.convert(mode).save(tmp_path / "a" / f"{mode}.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "a" / "turned.png", exif=exif)
    source = Folder(tmp_path)
    assert [source[i].image.shape for i in range(len(source))] == [(4, 6, 3)] * 5
    np.testing.assert_array_equal(source[4].image, np.asarray(image))


def test_what_cannot_be_read_is_named_when_it_is_reached(folder: Path) -> None:
    (folder / "b" / "2.png").write_bytes(b"no picture")
    source = Folder(folder)
    with pytest.raises(RecordError, match=re.escape(f"{folder / 'b' / '2.png'}: no picture that can be read")):
        source[3]
    assert source[2].name == "b/10.JPEG"


def test_identity_is_of_names_and_sizes(folder: Path) -> None:
    before = Folder(folder).identity()
    assert (before["folder"], before["files"]) == ("set", 4)
    assert Folder(folder).identity() == before
    (folder / "b" / "2.png").write_bytes(b"other")
    changed = Folder(folder).identity()
    (folder / "b" / "2.png").rename(folder / "b" / "3.png")
    assert (
        len({before["names_and_sizes"], changed["names_and_sizes"], Folder(folder).identity()["names_and_sizes"]}) == 3
    )


@pytest.mark.parametrize("there", [True, False])
def test_missing_data_say_what_to_put_where(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "set"
    if there:
        folder.mkdir()
    expected = f"no pictures of classes in {folder}; put a folder for each there, as {folder}/n01440764/some.JPEG"
    with pytest.raises(FileNotFoundError, match=re.escape(expected)):
        Folder(folder)

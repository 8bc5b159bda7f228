"""ImageNet as TFDS prepares it and as a folder, with clovaai's text files."""

import io
import re
import sys
from pathlib import Path

import made
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dcls_jax.eval import RecordError
from dcls_jax.eval.data.imagenet import ImageNet, ImageNetFiles, read_annotations

NAMES = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)]
TEXT = {
    "class_labels.txt": [(NAMES[0], 65), (NAMES[1], 970), (NAMES[2], 230)],
    "image_sizes.txt": [(NAMES[0], 50, 40), (NAMES[1], 50, 37), (NAMES[2], 40, 50)],
    "localization.txt": [(NAMES[0], 11, 10, 44, 19), (NAMES[1], 4, 4, 49, 16), (NAMES[1], 0, 6, 43, 20)],
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, rows in TEXT.items():
        (folder / name).write_text("".join(f"val/{','.join(map(str, row))}\n" for row in rows))
    return folder


def test_annotations(texts: Path) -> None:
    annotations = read_annotations(texts)
    assert annotations.labels == {NAMES[0]: 65, NAMES[1]: 970, NAMES[2]: 230}
    assert annotations.sizes[NAMES[1]] == (37, 50)
    assert annotations.boxes_in(NAMES[1], (37, 50)).tolist() == [[4, 4, 49, 16], [0, 6, 43, 20]]
    assert annotations.boxes_in(NAMES[0], (224, 224)).tolist() == [[49, 56, 197, 106]]  # int(11 * 224 / 50) and so on
    assert annotations.boxes_in(NAMES[2], (50, 40)).shape == (0, 4)


@pytest.mark.parametrize(
    ("file", "line"), [("localization.txt", "a,1,2,3"), ("class_labels.txt", "a,b"), ("image_sizes.txt", "a,1")]
)
def test_a_bad_line_is_named(texts: Path, file: str, line: str) -> None:
    path = texts / file
    path.write_text(f"{path.read_text()}{line}\n")
    number = len(TEXT[file]) + 1
    with pytest.raises(ValueError, match=re.escape(f"{path}, line {number}: {line!r}, expected a name and")):
        read_annotations(texts)


def test_missing_texts_say_what_to_put_where(tmp_path: Path) -> None:
    expected = f"no class_labels.txt in {tmp_path}; put the files of metadata/ILSVRC/test of github.com/clovaai"
    with pytest.raises(FileNotFoundError, match=re.escape(expected)):
        read_annotations(tmp_path)


def test_files_anywhere_have_labels_and_boxes_by_name(texts: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "val"
    for name, folder, size in ((NAMES[1], "n02", (37, 50)), (NAMES[0], ".", (20, 25)), ("other.JPEG", ".", (3, 3))):
        (pictures / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.picture(0, size)).save(pictures / folder / name)
    source = ImageNetFiles(pictures, read_annotations(texts))
    first, second = source[0], source[1]
    assert (first.name, first.label, first.boxes.tolist()) == (NAMES[0], 65, [[5, 5, 22, 9]])
    assert (second.name, second.label, len(second.boxes)) == (NAMES[1], 970, 2)
    assert (first.image.shape, first.image.dtype) == ((20, 25, 3), np.uint8)
    assert len(source) == 2
    assert source.damage == (f"{pictures}: 1 of the 3 annotated pictures are not there",)
    with pytest.raises(
        FileNotFoundError, match=f"none of the annotated pictures is in .*; put them there, as {NAMES[0]}"
    ):
        ImageNetFiles(texts, read_annotations(texts))


FEATURES = {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "label": tfds.features.ClassLabel(num_classes=1000),
    "file_name": tfds.features.Text(),
}


def test_prepared_by_tfds(texts: Path, tmp_path: Path) -> None:
    files = [io.BytesIO(made.encoded(made.picture(i, size), "JPEG")) for i, size in enumerate(((40, 50), (37, 50)))]
    records = [{"image": file, "label": 65 + i, "file_name": NAMES[i]} for i, file in enumerate(files)]
    made.prepare(tmp_path, "imagenet2012", "validation", FEATURES, records)
    bare = made.by_record(ImageNet(data_dir=tmp_path))
    assert {name: (sample.label, len(sample.boxes)) for name, sample in bare.items()} == {
        NAMES[0]: (65, 0),
        NAMES[1]: (66, 0),
    }
    for name, file in zip(NAMES, files, strict=False):
        np.testing.assert_array_equal(bare[name].image, np.asarray(Image.open(file)))
    source = ImageNet(data_dir=tmp_path, annotations=read_annotations(texts))
    assert made.by_record(source)[NAMES[1]].boxes.tolist() == [[4, 4, 49, 16], [0, 6, 43, 20]]
    assert source.place(1) == "imagenet2012, validation, record 1"
    assert source.identity() == {"dataset": "imagenet2012", "version": "1.0.0", "split": "validation", "records": 2}
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match="test"):
        ImageNet("test", data_dir=tmp_path)


def test_a_damaged_picture_is_named_when_it_is_reached(tmp_path: Path) -> None:
    records = [{"image": io.BytesIO(b"no picture"), "label": 3, "file_name": "a"}]
    made.prepare(tmp_path, "imagenet2012", "validation", FEATURES, records)
    source = ImageNet(data_dir=tmp_path)
    with pytest.raises(RecordError, match="imagenet2012, validation, record 0: no picture that can be read"):
        source[0]


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    build = f"tfds build imagenet2012 --file_format=array_record --data_dir={tmp_path}"
    expected = f"no imagenet2012 as array_record in {tmp_path}; once, with TensorFlow: {build}"
    with pytest.raises(FileNotFoundError, match=re.escape(expected)) as error:
        ImageNet(data_dir=tmp_path)
    assert "\n" not in str(error.value)

"""VOC as TFDS prepares it, and its masks from files in the VOCdevkit's layout."""

import io
import re
from pathlib import Path

import made
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dcls_jax.eval import RecordError
from dcls_jax.eval.data.voc import CLASSES, Voc, VocMasks
from dcls_jax.eval.localisation import box_regions, mask_regions

FEATURES = {
    "image": tfds.features.Image(),
    "image/filename": tfds.features.Text(),
    "objects": tfds.features.Sequence(
        {
            "label": tfds.features.ClassLabel(names=CLASSES),
            "bbox": tfds.features.BBoxFeature(),
            "is_difficult": np.bool_,
        }
    ),
}


def test_boxes_are_the_pixels_of_the_annotations(tmp_path: Path) -> None:
    """Pixels from 1, divided by the picture's sides in float32, and back."""
    rng = np.random.default_rng(0)
    annotated, records = {}, []
    for number in range(6):
        size = tuple(int(side) for side in rng.integers(100, 500, 2))
        height, width = size
        ends = np.sort(rng.integers(1, [width, height], (number, 2, 2)), 1)  # of no object in the first
        objects = [
            {
                "label": CLASSES[rng.integers(20)],
                "bbox": tfds.features.BBox(y0 / height, x0 / width, y1 / height, x1 / width),
                "is_difficult": bool(rng.integers(2)),
            }
            for (x0, y0), (x1, y1) in ends
        ]
        name = f"00000{number}.jpg"
        annotated[name] = ends.reshape(-1, 4) - 1, objects
        file = io.BytesIO(made.encoded(made.picture(number, size), "JPEG"))
        records.append({"image": file, "image/filename": name, "objects": objects})
    made.prepare(tmp_path, "voc/2007", "test", FEATURES, records)
    samples = made.by_record(Voc(data_dir=tmp_path))
    assert samples.keys() == annotated.keys()
    for name, (boxes, objects) in annotated.items():
        sample = samples[name]
        np.testing.assert_array_equal(sample.boxes, boxes)
        assert [CLASSES[label] for label in sample.labels] == [entry["label"] for entry in objects]
        assert sample.difficult.tolist() == [entry["is_difficult"] for entry in objects]
        regions = box_regions(sample.boxes, sample.labels, sample.difficult, sample.image.shape[:2])
        assert sorted(regions) == sorted(set(sample.labels.tolist()))


def test_missing_data_say_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("once, with TensorFlow: tfds build voc/2007 --file_format")):
        Voc(data_dir="/nowhere")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n2007_000042\n")
    classes = np.zeros((30, 40), np.uint8)
    classes[5:20, 5:20], classes[10:25, 15:30], classes[5:20, 20] = 1, 15, 255
    for name, values in (("2007_000033", classes), ("2007_000042", classes * 0)):
        Image.fromarray(made.picture(0, (30, 40))).save(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(values, "P")
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        mask.save(root / "SegmentationClass" / f"{name}.png")
    return root


def test_masks_are_of_classes(devkit: Path) -> None:
    source = VocMasks(devkit)
    sample, nothing = source[0], source[1]
    assert [CLASSES[label] for label in sample.labels] == ["aeroplane", "person"]
    expected = np.zeros((30, 40), int)
    expected[5:20, 5:20], expected[10:25, 15:30], expected[5:20, 20] = 1, 15, 255
    for mask, number in zip(sample.masks, (1, 15), strict=True):
        np.testing.assert_array_equal(mask, expected == number)
    np.testing.assert_array_equal(sample.ignore, expected == 255)
    assert (sample.name, sample.image.shape) == ("2007_000033.jpg", (30, 40, 3))
    assert (nothing.masks.shape, nothing.labels.shape) == ((0, 30, 40), (0,))
    regions = mask_regions(sample.masks, sample.labels, sample.ignore)
    assert list(regions) == [0, 14]
    assert regions[0].accompanied
    assert mask_regions(nothing.masks, nothing.labels) == {}


def test_bad_masks_are_named_when_they_are_reached(devkit: Path) -> None:
    source, path = VocMasks(devkit), devkit / "SegmentationClass" / "2007_000033.png"
    for values, message in (
        (np.zeros((30, 41), np.uint8), "a mask of shape (30, 41), expected (30, 40), its picture's"),
        (np.full((30, 40), 21, np.uint8), "class 21 in a mask, expected 1 to 20 or 255"),
    ):
        Image.fromarray(values).save(path)
        with pytest.raises(RecordError, match=re.escape(f"{path}: {message}")):
            source[0]
    path.unlink()
    with pytest.raises(RecordError, match=re.escape(f"{path}: no mask that can be read")):
        source[0]


def test_missing_masks_say_what_to_put_where(tmp_path: Path) -> None:
    expected = f"no {tmp_path}/ImageSets/Segmentation/val.txt; unpack VOCtrainval_11-May-2012.tar and name its"
    with pytest.raises(FileNotFoundError, match=re.escape(expected)):
        VocMasks(tmp_path)

"""COCO as TFDS prepares it, and its masks from files in COCO's format."""

import io
import json
import re
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dcls_jax.eval import RecordError
from dcls_jax.eval.data.coco import Coco, CocoMasks, segmentation_mask
from dcls_jax.eval.data.polygons import polygon_mask, run_length_mask

SQUARE = [2, 3, 12, 3, 12, 9, 2, 9]  # columns 2 to 11, rows 3 to 8
TRIANGLE = [20.0, 5.0, 30.0, 5.0, 20.0, 15.0]


@pytest.fixture
def content() -> dict[str, Any]:
    """Two pictures of 20 x 40, one of which has no object; a crowd in run lengths; ids in no order."""
    crowd = {"size": [20, 40], "counts": [100, 30, 670]}
    return {
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
        "images": [
            {"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "height": 20, "width": 40},
            {"id": 3, "file_name": "COCO_val2014_000000000003.jpg", "height": 20, "width": 40},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 90, "iscrowd": 0, "segmentation": [SQUARE]},
            {"id": 6, "image_id": 7, "category_id": 13, "iscrowd": 0, "segmentation": [SQUARE, TRIANGLE]},
            {"id": 8, "image_id": 7, "category_id": 90, "iscrowd": 1, "segmentation": crowd},
        ],
    }


@pytest.fixture
def source(content: dict[str, Any], tmp_path: Path) -> CocoMasks:
    return write(content, tmp_path)


def write(content: dict[str, Any], folder: Path) -> CocoMasks:
    (folder / "val2014").mkdir(exist_ok=True)
    for image in content["images"]:
        Image.fromarray(made.picture(0, (20, 40))).save(folder / "val2014" / image["file_name"])
    (folder / "instances_val2014.json").write_text(json.dumps(content))
    return CocoMasks(folder / "val2014", folder / "instances_val2014.json")


def test_masks_are_unions_of_a_classs_objects(source: CocoMasks) -> None:
    sample, nothing = source[0], source[1]
    assert sample.labels.tolist() == [1, 2]  # of ids 1, 13, 90
    square, crowd = np.zeros((2, 20, 40), bool)
    square[3:9, 2:12] = True
    crowd[:, 5], crowd[:10, 6] = True, True
    np.testing.assert_array_equal(sample.masks[1], square | crowd)
    np.testing.assert_array_equal(sample.masks[0], square | polygon_mask(TRIANGLE, (20, 40)))
    assert nothing.masks.shape == (0, 20, 40)
    assert nothing.name == "COCO_val2014_000000000003.jpg"
    assert source.place(1).endswith("/val2014/COCO_val2014_000000000003.jpg")
    assert source.identity()["annotations"] == 3


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3]], "expected pairs of finite numbers"),
        ([["a", "b"]], "could not convert"),
        ({"size": [20, 40], "counts": [100, 30]}, "run lengths add up to 130, expected 20 x 40"),
        ({"size": [40, 20], "counts": [800]}, "run lengths of size [40, 20], expected [20, 40]"),
        ({"counts": [800]}, "'size'"),
        (None, "not iterable"),
    ],
)
def test_bad_masks_are_named_when_they_are_reached(
    content: dict[str, Any], tmp_path: Path, segmentation: object, message: str
) -> None:
    content["annotations"][1]["segmentation"] = segmentation
    bad = write(content, tmp_path)
    assert bad[1].name == "COCO_val2014_000000000003.jpg"
    with pytest.raises(RecordError, match=r"val2014/COCO_val2014_000000000007\.jpg: annotation 6 is no mask") as error:
        bad[0]
    assert message in str(error.value)


def test_bad_pictures_are_named_when_they_are_reached(content: dict[str, Any], tmp_path: Path) -> None:
    content["images"][0]["width"] = 41
    with pytest.raises(RecordError, match=re.escape("a picture of (20, 40), listed as (20, 41)")):
        write(content, tmp_path)[0]


def test_missing_data_say_what_to_put_where(content: dict[str, Any], tmp_path: Path) -> None:
    instances = tmp_path / "instances_val2014.json"
    with pytest.raises(FileNotFoundError, match=re.escape(f"no {instances}; it is in annotations_trainval2014.zip")):
        CocoMasks(tmp_path, instances)
    instances.write_text(json.dumps(content))
    expected = f"no COCO_val2014_000000000007.jpg in {tmp_path}; unpack the pictures of instances_val2014.json there"
    with pytest.raises(FileNotFoundError, match=re.escape(expected)):
        CocoMasks(tmp_path, instances)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: {"images": []}, "lacks 'categories', expected one of COCO's instances_"),
        (lambda content: [content], "lacks list indices must be"),
        (lambda content: content | {"annotations": [{"image_id": 5}]}, "lacks 5, expected"),
    ],
)
def test_other_json_is_named(content: dict[str, Any], tmp_path: Path, change: Any, message: str) -> None:
    instances = tmp_path / "some.json"
    instances.write_text(json.dumps(change(content)))
    with pytest.raises(ValueError, match=re.escape(f"{instances} {message}")):
        CocoMasks(tmp_path, instances)
    instances.write_text("{")
    with pytest.raises(ValueError, match=re.escape(f"{instances} is no JSON that can be read")):
        CocoMasks(tmp_path, instances)


FEATURES = {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "image/filename": tfds.features.Text(),
    "image/id": np.int64,
    "objects": tfds.features.Sequence(
        {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=80), "is_crowd": np.bool_}
    ),
}


def test_boxes_prepared_by_tfds(tmp_path: Path) -> None:
    """x, y, width, height of two decimals, divided by the picture's sides in float32."""
    x, y, width, height = 10.25, 3.0, 20.5, 4.99
    box = tfds.features.BBox(y / 48, x / 64, (y + height) / 48, (x + width) / 64)
    small = tfds.features.BBox(7 / 48, 9 / 64, 8 / 48, 10 / 64)
    objects = [{"bbox": box, "label": 79, "is_crowd": False}, {"bbox": small, "label": 3, "is_crowd": True}]
    files = [io.BytesIO(made.encoded(made.picture(i, (48, 64)), "JPEG")) for i in range(2)]
    records = [
        {"image": files[0], "image/filename": "a.jpg", "image/id": 1, "objects": objects},
        {"image": files[1], "image/filename": "b.jpg", "image/id": 2, "objects": []},
    ]
    made.prepare(tmp_path, "coco/2014", "validation", FEATURES, records)
    samples = made.by_record(Coco(data_dir=tmp_path))
    assert samples["a.jpg"].boxes.tolist() == [[10, 3, 30, 7], [9, 7, 9, 7]]
    assert (samples["a.jpg"].labels.tolist(), samples["a.jpg"].crowd.tolist()) == ([79, 3], [False, True])
    assert samples["b.jpg"].boxes.shape == (0, 4)
    with pytest.raises(FileNotFoundError, match=r"no coco/2017 as array_record in .*tfds build coco/2017"):
        Coco("2017", data_dir=tmp_path)


# polygons and run lengths


@pytest.mark.parametrize(
    ("polygon", "rows"),
    [
        ([1, 1, 4, 1, 4, 3, 1, 3], ["......", ".###..", ".###..", "......"]),
        ([0, 0, 6, 0, 6, 4, 0, 4], ["######"] * 4),
        ([-5, -5, 60, -5, 60, 40, -5, 40], ["######"] * 4),
        ([0, 0, 4, 0, 0, 4], ["###...", "##....", "#.....", "......"]),
        ([2, 2], ["......"] * 4),
    ],
)
def test_polygons(polygon: list[float], rows: list[str]) -> None:
    found = ["".join(".#"[int(inside)] for inside in row) for row in polygon_mask(polygon, (4, 6))]
    assert found == rows


def test_run_lengths_go_down_columns() -> None:
    mask = run_length_mask([3, 2, 1], (2, 3))
    np.testing.assert_array_equal(mask, [[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(run_length_mask([0, 6], (2, 3)), np.ones((2, 3), bool))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with NumPy 2
def test_masks_are_pycocotools(rng: np.random.Generator) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    for number in range(300):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        polygons = [
            ((rng.random((rng.integers(3, 12), 2)) * 1.3 - 0.15) * [width, height]).round(number % 3).ravel().tolist()
            for _ in range(rng.integers(1, 4))
        ]
        polygons[0] = polygons[0][:2] * 2 + polygons[0]  # corners that are the same
        compressed = coco.merge(coco.frPyObjects(polygons, height, width))
        expected = coco.decode(compressed).astype(bool)
        np.testing.assert_array_equal(segmentation_mask(polygons, (height, width)), expected)
        np.testing.assert_array_equal(segmentation_mask(compressed, (height, width)), expected)
        text = compressed["counts"].decode()
        np.testing.assert_array_equal(run_length_mask(text, (height, width)), expected)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)

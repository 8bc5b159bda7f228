"""PASCAL VOC: boxes by TensorFlow Datasets, and class masks of the segmentation pictures from the VOCdevkit."""

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dcls_jax.eval import RecordError
from dcls_jax.eval.data.folder import PictureFiles
from dcls_jax.eval.data.prepared import Prepared
from dcls_jax.eval.data.regions import Region, box_regions, mask_regions

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_UNKNOWN = 255  # of a mask's pixel: the border of an object, or what was hard to tell


class Sample(NamedTuple):
    """One picture: image (H, W, 3) uint8; boxes (k, 4) int, labels (k,) int, difficult (k,) bool; its file's name.

    Boxes are x0, y0, x1, y1 of the image's pixels, counted from 0, both ends inside.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    name: str

    @property
    def regions(self) -> dict[int, Region]:
        """Those of its classes, of their boxes."""
        return box_regions(self.boxes, self.labels, self.difficult, self.image.shape[:2])


class MaskSample(NamedTuple):
    """One picture: image (H, W, 3) uint8; masks (k, H, W) bool of its classes, labels (k,) int; its file's name.

    ignore: (H, W) bool, pixels that the annotators left open.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    name: str

    @property
    def regions(self) -> dict[int, Region]:
        """Those of its classes."""
        return mask_regions(self.masks, self.labels, self.ignore)


class Voc(Prepared[Sample]):
    """VOC with boxes, as TFDS has prepared it; 2007 test is the pointing game's. Errors: as of `Prepared`."""

    def __init__(self, year: str = "2007", split: str = "test", *, data_dir: str | PathLike[str] | None = None) -> None:
        super().__init__(f"voc/{year}", split, data_dir)

    def _sample(self, image: np.ndarray, record: dict[str, Any]) -> Sample:
        objects, (height, width, _) = record["objects"], image.shape
        shares = np.reshape(objects["bbox"], (-1, 4))[:, [1, 0, 3, 2]].astype(float)  # of y0, x0, y1, x1
        boxes = np.rint(shares * ([width, height] * 2)).astype(int) - 1  # VOC counts pixels from 1
        labels, difficult = np.array(objects["label"], int), np.array(objects["is_difficult"], bool)
        return Sample(image, boxes, labels, difficult, record["image/filename"].decode())

    def region_count(self, index: int) -> int:
        """How many classes a picture has boxes of."""
        return len(np.unique(self._records[index]["objects"]["label"]))


class VocMasks(PictureFiles[MaskSample]):
    """VOC with masks, of the segmentation pictures of a folder VOCdevkit/VOC2012.

    Raises FileNotFoundError, which says what to put where, and RecordError, when it is reached, for a mask that cannot
    be read or has another size than its picture.
    """

    def __init__(self, folder: str | PathLike[str], split: str = "val") -> None:
        root = Path(folder)
        listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(f"no {listed}; unpack VOCtrainval_11-May-2012.tar and name its VOCdevkit/VOC2012")
        names = listed.read_text(encoding="utf-8").split()
        super().__init__(root / "JPEGImages", [root / "JPEGImages" / f"{name}.jpg" for name in names])
        self._masks = [root / "SegmentationClass" / f"{name}.png" for name in names]

    def _sample(self, image: np.ndarray, index: int) -> MaskSample:
        path, classes = self._masks[index], self._classes(index)
        if classes.shape != image.shape[:2]:
            raise RecordError(f"{path}: a mask of shape {classes.shape}, expected {image.shape[:2]}, its picture's")
        numbers = _objects(classes)
        if numbers and max(numbers) > len(CLASSES):
            raise RecordError(f"{path}: class {max(numbers)} in a mask, expected 1 to {len(CLASSES)} or {_UNKNOWN}")
        masks = np.array([classes == n for n in numbers], bool).reshape(-1, *classes.shape)
        return MaskSample(image, masks, np.array(numbers, int) - 1, classes == _UNKNOWN, self.name(index))

    def _classes(self, index: int) -> np.ndarray:
        path = self._masks[index]
        try:
            with Image.open(path) as file:
                return np.array(file)
        except OSError as error:
            raise RecordError(f"{path}: no mask that can be read ({error})") from error

    def region_count(self, index: int) -> int:
        """How many classes a mask has."""
        try:
            return len(_objects(self._classes(index)))
        except RecordError:
            return 1


def _objects(classes: np.ndarray) -> list[int]:
    """The numbers of a mask's classes, from 1."""
    return [n for n in np.unique(classes).tolist() if n not in (0, _UNKNOWN)]  # 0 is the background

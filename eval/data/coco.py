"""COCO: boxes by TensorFlow Datasets, and masks of a folder of pictures with its instances_*.json."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dcls_jax.eval import RecordError
from dcls_jax.eval.boxes import Size
from dcls_jax.eval.data.folder import PictureFiles
from dcls_jax.eval.data.polygons import polygon_mask, run_length_mask
from dcls_jax.eval.data.prepared import Prepared
from dcls_jax.eval.data.regions import Region, box_regions, mask_regions


class Sample(NamedTuple):
    """One picture: image (H, W, 3) uint8; boxes (k, 4) int, labels (k,) int, crowd (k,) bool; its file's name.

    Boxes are x0, y0, x1, y1 of the pixels that an object's box touches, counted from 0, both ends inside. Labels count
    the 80 categories in the order of their ids.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    name: str

    @property
    def regions(self) -> dict[int, Region]:
        """Those of its classes, of their boxes, crowds' too."""
        return box_regions(self.boxes, self.labels, np.zeros(len(self.labels), bool), self.image.shape[:2])


class MaskSample(NamedTuple):
    """One picture: image (H, W, 3) uint8; masks (k, H, W) bool of its classes, labels (k,) int; its file's name.

    A mask is of all objects of its class, crowds too. Labels count the categories in the order of their ids.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    name: str

    @property
    def regions(self) -> dict[int, Region]:
        """Those of its classes."""
        return mask_regions(self.masks, self.labels)


class Coco(Prepared[Sample]):
    """COCO with boxes, as TFDS has prepared it. year: "2014" or "2017". Errors: see `Prepared`."""

    def __init__(
        self, year: str = "2014", split: str = "validation", *, data_dir: str | PathLike[str] | None = None
    ) -> None:
        super().__init__(f"coco/{year}", split, data_dir)

    def _sample(self, image: np.ndarray, record: dict[str, Any]) -> Sample:
        objects, (height, width, _) = record["objects"], image.shape
        shares = np.reshape(objects["bbox"], (-1, 4))[:, [1, 0, 3, 2]].astype(float)  # of y0, x0, y1, x1
        edges = np.round(shares * ([width, height] * 2), 2)  # as COCO has them, without the rounding of float32
        last = np.maximum(np.ceil(edges[:, 2:]) - 1, np.floor(edges[:, :2]))
        boxes = np.concatenate([np.floor(edges[:, :2]), last], 1).astype(int)
        labels, crowd = np.array(objects["label"], int), np.array(objects["is_crowd"], bool)
        return Sample(image, boxes, labels, crowd, record["image/filename"].decode())

    def region_count(self, index: int) -> int:
        """How many classes a picture has boxes of."""
        return len(np.unique(self._records[index]["objects"]["label"]))


class CocoMasks(PictureFiles[MaskSample]):
    """COCO with masks: the pictures of a folder, val2014 say, that an instances_val2014.json lists, in its order.

    Raises FileNotFoundError, which says what to put where, ValueError for another kind of JSON, and RecordError, when
    it is reached, for a picture of another size than listed and a mask that cannot be made.
    """

    def __init__(self, folder: str | PathLike[str], instances: str | PathLike[str]) -> None:
        root, content = Path(folder), _read(Path(instances))
        try:
            self._images: list[Mapping[str, Any]] = content["images"]
            self._label = {id: label for label, id in enumerate(sorted(entry["id"] for entry in content["categories"]))}
            self._objects: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in self._images}
            for entry in content["annotations"]:
                self._objects[entry["image_id"]].append(entry)
            files = [root / image["file_name"] for image in self._images]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{instances} lacks {error}, expected one of COCO's instances_*.json") from error
        super().__init__(root, files)
        if not self._files or not self._files[0].is_file():
            what = self._images[0]["file_name"] if self._images else "pictures"
            raise FileNotFoundError(f"no {what} in {folder}; unpack the pictures of {Path(instances).name} there")

    def _sample(self, image: np.ndarray, index: int) -> MaskSample:
        listed = self._images[index]
        size: Size = listed["height"], listed["width"]
        if size != image.shape[:2]:
            raise RecordError(f"{self.place(index)}: a picture of {image.shape[:2]}, listed as {size}")
        masks: dict[int, np.ndarray] = {}
        for entry in self._objects[listed["id"]]:
            label = self._label[entry["category_id"]]
            try:
                masks[label] = masks.get(label, False) | segmentation_mask(entry["segmentation"], size)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise RecordError(f"{self.place(index)}: annotation {entry.get('id')} is no mask ({error})") from error
        stacked = np.array([masks[label] for label in sorted(masks)], bool).reshape(-1, *size)
        return MaskSample(image, stacked, np.array(sorted(masks), int), self.name(index))

    def region_count(self, index: int) -> int:
        """How many classes a picture has masks of."""
        return len({entry["category_id"] for entry in self._objects[self._images[index]["id"]]})

    def identity(self) -> dict[str, Any]:
        """What tells these data from others, as JSON values."""
        return super().identity() | {"annotations": sum(map(len, self._objects.values()))}


def segmentation_mask(segmentation: Any, size: Size) -> np.ndarray:
    """A COCO segmentation, polygons or run lengths, plain or compressed, as a mask of size (H, W): bool."""
    if isinstance(segmentation, Mapping):
        if tuple(segmentation["size"]) != size:
            raise ValueError(f"run lengths of size {segmentation['size']}, expected {[*size]}")
        return run_length_mask(segmentation["counts"], size)
    return np.any([polygon_mask(polygon, size) for polygon in segmentation], axis=0)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; it is in annotations_trainval2014.zip or annotations_trainval2017.zip")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON that can be read ({error})") from error

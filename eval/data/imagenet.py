"""ImageNet (ILSVRC 2012) by TensorFlow Datasets or from a folder, with boxes of clovaai/wsolevaluation's text files."""

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dcls_jax.eval.boxes import Size, box_mask, scaled_boxes
from dcls_jax.eval.data.folder import PictureFiles, picture_files
from dcls_jax.eval.data.prepared import Prepared
from dcls_jax.eval.data.regions import Region

_FILES = "class_labels.txt", "image_sizes.txt", "localization.txt"


class Sample(NamedTuple):
    """One picture: image (H, W, 3) uint8, its label, boxes (k, 4) int of objects of that class, and its file's name.

    Boxes are x0, y0, x1, y1 of the image's pixels, counted from 0, both ends inside; k is 0 where none are known.
    """

    image: np.ndarray
    label: int
    boxes: np.ndarray
    name: str

    @property
    def regions(self) -> dict[int, Region]:
        """That of its class, which is empty where no boxes are known."""
        return {self.label: Region(box_mask(self.boxes, self.image.shape[:2]), self.boxes)}


class Annotations(NamedTuple):
    """What is known of pictures, by the file's name: label, size (H, W), and boxes (k, 4) int."""

    labels: dict[str, int]
    sizes: dict[str, Size]
    boxes: dict[str, np.ndarray]

    def boxes_in(self, name: str, size: Size) -> np.ndarray:
        """A picture's boxes in the pixels of its copy of that size."""
        boxes = self.boxes.get(name, np.zeros((0, 4), int))
        known = self.sizes.get(name, size)
        return boxes if known == size else scaled_boxes(boxes, known, size)


NO_ANNOTATIONS = Annotations({}, {}, {})


def read_annotations(folder: str | PathLike[str]) -> Annotations:
    """A folder of clovaai/wsolevaluation, metadata/ILSVRC/test for the validation pictures, which it tests with.

    Raises FileNotFoundError, which says what to put where, and ValueError, which names file and line.
    """
    root = Path(folder)
    for file in _FILES:
        if not (root / file).is_file():
            source = "metadata/ILSVRC/test of github.com/clovaai/wsolevaluation"
            raise FileNotFoundError(f"no {file} in {folder}; put the files of {source} there")
    labels, sizes, corners = (_rows(root / file, count) for file, count in zip(_FILES, (1, 2, 4), strict=True))
    boxes: dict[str, list[list[int]]] = {}
    for name, box in corners:
        boxes.setdefault(name, []).append(box)
    return Annotations(
        {name: label for name, (label,) in labels},
        {name: (height, width) for name, (width, height) in sizes},
        {name: np.array(found) for name, found in boxes.items()},
    )


def _rows(path: Path, count: int) -> list[tuple[str, list[int]]]:
    """Lines of a file's name and so many numbers."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, *values = line.split(",")
        try:
            rows.append((Path(name).name, [int(value) for value in values]))
        except ValueError:
            values = []
        if len(values) != count:
            raise ValueError(f"{path}, line {number}: {line!r:.80}, expected a name and {count} whole numbers")
    return rows


class ImageNet(Prepared[Sample]):
    """ImageNet as TFDS has prepared it, "imagenet2012".

    annotations: of `read_annotations`, for boxes; none unless given. data_dir, errors: as of `Prepared`.
    """

    def __init__(
        self,
        split: str = "validation",
        *,
        annotations: Annotations = NO_ANNOTATIONS,
        data_dir: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__("imagenet2012", split, data_dir)
        self._annotations = annotations

    def _sample(self, image: np.ndarray, record: dict[str, Any]) -> Sample:
        name = record["file_name"].decode()
        return Sample(image, int(record["label"]), self._annotations.boxes_in(name, image.shape[:2]), name)

    def region_count(self, index: int) -> int:
        """One: every picture has a class."""
        return 1


class ImageNetFiles(PictureFiles[Sample]):
    """Pictures anywhere below a folder, with labels and boxes by their names, in the annotations' order.

    damage says how many pictures of the annotations are not there. Raises FileNotFoundError, which says what to put
    where, if none is.
    """

    def __init__(self, folder: str | PathLike[str], annotations: Annotations) -> None:
        there = {path.name: path for path in picture_files(Path(folder))}
        found = [name for name in annotations.labels if name in there]
        lacking = len(annotations.labels) - len(found)
        if not found:
            example = next(iter(annotations.labels), "ILSVRC2012_val_00000001.JPEG")
            raise FileNotFoundError(f"none of the annotated pictures is in {folder}; put them there, as {example}")
        super().__init__(Path(folder), [there[name] for name in found])
        self._annotations = annotations
        if lacking:
            self.damage = (f"{folder}: {lacking} of the {len(annotations.labels)} annotated pictures are not there",)

    def _sample(self, image: np.ndarray, index: int) -> Sample:
        name = self._files[index].name
        return Sample(image, self._annotations.labels[name], self._annotations.boxes_in(name, image.shape[:2]), name)

    def region_count(self, index: int) -> int:
        """One: every picture has a class."""
        return 1

"""The published protocols that compare a map with where the objects of a class are, one class of a picture at a time.

Each gives `Scores`: values, or a status that says why there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dcls_jax.eval.localisation.maps import enlarged, unit_range
from dcls_jax.eval.localisation.points import energy, highest_inside, is_near, peak
from dcls_jax.eval.localisation.regions import Region
from dcls_jax.eval.status import Status


class Scores(NamedTuple):
    """What one map has reached: values by name, each a number or an array, and NaN where it does not count.

    tied: the share of the picture's pixels among which the order of equal values decides, 0 where none.
    """

    values: dict[str, np.ndarray]
    status: Status
    tied: float = 0.0


@dataclass(frozen=True)
class PointingPreset:
    """A pointing game. source: whose. data: on what; classes: how many it has.

    hard: only objects that cover less than a quarter of the picture, among objects of other classes. tolerance: in
    pixels of the picture, strict. A constant map counts, and points at the first pixel. The network sees the whole
    picture; maps are taken as the method gives them.
    """

    source: str
    data: str
    classes: int
    hard: bool = False
    tolerance: float = 15


_TORCHRAY = "TorchRay, benchmark/pointing_game.py, 6a198ee; difficult as Zhang et al. 2016 (arXiv 1608.00507) define it"
_GROUP_CAM = "Group-CAM's abstract (arXiv 2103.13859) by TorchRay's rule: its script was never published"

POINTING_PRESETS = {
    "torchray_voc": PointingPreset(_TORCHRAY, "VOC 2007 test", 20),
    "torchray_voc_difficult": PointingPreset(_TORCHRAY, "VOC 2007 test", 20, hard=True),
    "torchray_coco": PointingPreset(_TORCHRAY, "COCO 2014 val", 80),
    "torchray_coco_difficult": PointingPreset(_TORCHRAY, "COCO 2014 val", 80, hard=True),
    "group_cam_coco": PointingPreset(_GROUP_CAM, "COCO 2017 val", 80),
}


@dataclass(frozen=True)
class InsidePreset:
    """Energy and highest pixels inside the union of a class's boxes. source: whose.

    sees: the whole picture, or the centre that the model's transform keeps, to which `cropped` brings a region.
    largest: share of what is seen, above which boxes are too large to tell. single: pictures of one box alone.
    normalise: min-max of the enlarged map. Maps are the ReLU of what the method gives.
    """

    source: str
    sees: Literal["whole", "crop"] = "whole"
    largest: float = 1.0
    single: bool = False
    normalise: bool = False


INSIDE_PRESETS = {
    "boxes": InsidePreset("All pictures and the union of their boxes, without a filter"),
    "score_cam": InsidePreset(
        "Wang et al. 2020 (arXiv 1910.01279), section 4.3; boxes take in their ends, unlike utils/energyPointGame.py",
        largest=0.5,
        single=True,
        normalise=True,
    ),
    "iba": InsidePreset(
        "Schulz et al. 2020 (arXiv 2001.00396), scripts/eval_bounding_boxes.py, 6bac54a; boxes take in their ends",
        sees="crop",
        largest=0.33,
    ),
}


@dataclass(frozen=True)
class MaskPreset:
    """Segmented classes. source: what it is. classes: how many the data have.

    interval: between thresholds of the map in [0, 1]; fixed: those reported by themselves. tolerance: of pointing.
    Maps are the ReLU of what the method gives; energy is of that, and overlaps are of its min-max.
    """

    source: str
    classes: int
    interval: float = 0.01
    fixed: tuple[float, ...] = (0.2, 0.5)
    tolerance: float = 15

    @cached_property
    def thresholds(self) -> np.ndarray:
        """From 0 to below 1, (T,) float64."""
        return np.arange(0, 1, self.interval)


MASK_PRESETS = {
    "voc_masks": MaskPreset("Masks of VOC 2012's classes; not HiResCAM's own protocol, which is not public", classes=20)
}


def pointing(map: ArrayLike, region: Region, preset: PointingPreset) -> Scores:
    """Whether a map (h, w) points at a class: {"hit"}, 0 or 1.

    tied: the share of pixels as large as the largest, if several are; a plateau where the peak is in a border cell.
    """
    map = np.asarray(map, np.float64)
    status = _status(map, region)
    if preset.hard and not region.hard:
        status = Status.EASY
    if status not in (Status.COUNTED, Status.CONSTANT):
        return Scores({"hit": np.array(np.nan)}, status)
    map = enlarged(map, region.mask.shape)
    row, column, pixels = peak(map)
    hit = is_near(region.mask, row, column, preset.tolerance)
    return Scores({"hit": np.array(float(hit))}, status, pixels / map.size if pixels > 1 else 0.0)


def inside(map: ArrayLike, region: Region, preset: InsidePreset) -> Scores:
    """How much of a map (h, w) is where a class is: {"energy", "top_n"}, from 0 to 1.

    region: of the part of the picture that the map is of. tied: the share of pixels that are equal at the edge of the
    highest.
    """
    map = np.maximum(np.asarray(map, np.float64), 0)
    status = _status(map, region)
    if preset.single and region.objects > 1:
        status = Status.SEVERAL
    elif region.share > preset.largest:
        status = Status.TOO_LARGE
    if status is not Status.COUNTED:
        return Scores(dict.fromkeys(("energy", "top_n"), np.array(np.nan)), status)
    map = enlarged(map, region.mask.shape)
    map = unit_range(map) if preset.normalise else map
    top, equal = highest_inside(map, region.mask > 0.5)
    values = {"energy": np.array(energy(map, region.mask)), "top_n": np.array(top)}
    return Scores(values, status, equal / map.size if equal > 1 else 0.0)


def on_mask(map: ArrayLike, region: Region, preset: MaskPreset) -> Scores:
    """How well a map (h, w) shows a segmented class.

    {"energy", "hit", "iou" (T,) at each threshold, "best_iou" at the best of this map, "iou_0.2" and so on at the fixed
    ones}, from 0 to 1; pixels that the region ignores count nowhere. tied: as of `pointing`.
    """
    shown = np.maximum(np.asarray(map, np.float64), 0)
    known = np.ones_like(region.mask) if region.ignore is None else ~region.ignore
    names = [f"iou_{threshold:g}" for threshold in preset.fixed]
    status = _status(shown, region)
    if status is Status.COUNTED:
        shown = enlarged(shown, region.mask.shape)
        status = _status(shown[known], region)
    if status is not Status.COUNTED:
        numbers = dict.fromkeys(("energy", "hit", "best_iou", *names), np.array(np.nan))
        return Scores(numbers | {"iou": np.full(preset.thresholds.shape, np.nan)}, status)
    row, column, pixels = peak(np.where(known, shown, -1))
    iou = _overlaps(unit_range(shown[known]), region.mask[known], preset.thresholds)
    fixed = iou[np.searchsorted(preset.thresholds, np.array(preset.fixed) - preset.interval / 2)]
    values = {
        "energy": np.array(energy(shown[known], region.mask[known])),
        "hit": np.array(float(is_near(region.mask, row, column, preset.tolerance))),
        "iou": iou,
        "best_iou": np.array(iou.max()),
    }
    tied = pixels / shown.size if pixels > 1 else 0.0
    return Scores(values | dict(zip(names, fixed, strict=True)), status, tied)


def _status(map: np.ndarray, region: Region) -> Status:
    if not np.isfinite(map).all():
        return Status.NOT_FINITE
    if not (region.mask > 0.5).any():
        return Status.EMPTY
    if region.difficult:
        return Status.DIFFICULT
    return Status.COUNTED if map.max() > map.min() else Status.CONSTANT


def _overlaps(values: np.ndarray, mask: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Intersection over union of what is above each threshold with a mask, of pixels (n,): (T,)."""
    above = np.searchsorted(thresholds, values)  # how many thresholds
    counts = (np.bincount(above[side], minlength=len(thresholds) + 1) for side in (mask, ~mask))
    inside, outside = (count[::-1].cumsum()[::-1][1:] for count in counts)
    return inside / (mask.sum() + outside)


class ClassMeans(NamedTuple):
    """A mean over classes: of all, where one never seen counts 0, as TorchRay has it, and of those seen.

    per_class: (classes,) float64, NaN for a class never seen.
    """

    all: float
    seen: float
    per_class: np.ndarray


def class_means(values: ArrayLike, labels: Sequence[int] | np.ndarray, classes: int) -> ClassMeans:
    """Means of values (n,) with labels (n,) by class; NaN, what does not count, is left out.

    Raises ValueError for labels that are not from 0 to below `classes`.
    """
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    if values.shape != labels.shape or values.ndim != 1:
        raise ValueError(f"values have shape {values.shape} and labels {labels.shape}, expected (n,) both")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels are from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    counted = np.isfinite(values)
    total = np.bincount(labels[counted], values[counted], classes)
    count = np.bincount(labels[counted], minlength=classes)
    per_class = np.where(count, total / count.clip(1), np.nan)
    seen = per_class[count > 0]
    return ClassMeans(float(seen.sum() / classes), float(seen.mean()) if len(seen) else np.nan, per_class)

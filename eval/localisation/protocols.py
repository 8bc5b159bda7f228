"""The published protocols that compare a map with where the objects of a class are, one class of a picture at a time.

Each gives `Scores`: values, float64 and NaN where they do not count, and a status, which says why. One of the values is
"tied": the share of the picture's pixels among which only a rule for equal values decides, 0 where there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dcls_jax.eval.data.regions import Region
from dcls_jax.eval.localisation.maps import enlarged, unit_range
from dcls_jax.eval.localisation.points import energy, highest_inside, is_near, peak
from dcls_jax.eval.status import Scores, Status


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
    "single_box": InsidePreset("Pictures of one box alone", single=True),
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

    thresholds: of the map in [0, 1], increasing; fixed: those of them that are reported by themselves. tolerance: of
    pointing. Maps are the ReLU of what the method gives; energy is of that, and overlaps are of its min-max.
    """

    source: str
    classes: int
    thresholds: tuple[float, ...] = tuple(np.linspace(0, 0.99, 100).round(2).tolist())
    fixed: tuple[float, ...] = (0.2, 0.5)
    tolerance: float = 15


MASK_PRESETS = {
    "voc_masks": MaskPreset("Masks of VOC 2012's classes; not HiResCAM's own protocol, which is not public", classes=20)
}


def pointing(map: ArrayLike, region: Region, preset: PointingPreset) -> Scores:
    """Whether a map (h, w) points at a class: {"hit", 0 or 1, "tied"}.

    tied: the pixels that are as large as the largest; a plateau where the peak is in a cell at the border.
    """
    map = np.asarray(map, np.float64)
    status = _status(map, region)
    if preset.hard and not region.hard:
        status = Status.EASY
    if status not in (Status.COUNTED, Status.CONSTANT):
        return _no_scores(status, "hit", "tied")
    map = enlarged(map, region.mask.shape)
    row, column, pixels = peak(map)
    hit = is_near(region.mask, row, column, preset.tolerance)
    return _scores(hit=hit, tied=_share_of_several(pixels, map))


def inside(map: ArrayLike, region: Region, preset: InsidePreset) -> Scores:
    """How much of a map (h, w) is where a class is: {"energy", "top_n", "tied"}, from 0 to 1.

    region: of the part of the picture that the map is of. tied: the pixels that are equal at the edge of the highest.
    """
    map = np.maximum(np.asarray(map, np.float64), 0)
    status = _status(map, region)
    if preset.single and len(region.boxes) > 1:
        status = Status.SEVERAL
    elif region.share > preset.largest:
        status = Status.TOO_LARGE
    if status is not Status.COUNTED:
        return _no_scores(status, "energy", "top_n", "tied")
    map = enlarged(map, region.mask.shape)
    map = unit_range(map) if preset.normalise else map
    top_n, equal = highest_inside(map, region.mask > 0.5)
    return _scores(energy=energy(map, region.mask), top_n=top_n, tied=_share_of_several(equal, map))


def on_mask(map: ArrayLike, region: Region, preset: MaskPreset) -> Scores:
    """How well a map (h, w) shows a segmented class.

    {"energy", "hit", "iou" (T,) at each threshold, "best_iou" at the best of this map, "iou_0.2" and so on at the fixed
    ones, "tied"}, from 0 to 1; pixels that the region ignores count nowhere. tied: as of `pointing`.
    """
    map = np.maximum(np.asarray(map, np.float64), 0)
    known = np.ones_like(region.mask) if region.ignore is None else ~region.ignore
    fixed = [f"iou_{threshold:g}" for threshold in preset.fixed]
    status = _status(map, region)
    if status is Status.COUNTED:
        map = enlarged(map, region.mask.shape)
        status = _status(map[known], region)
    if status is not Status.COUNTED:
        nothing = _no_scores(status, "energy", "hit", "best_iou", *fixed, "tied")
        return nothing._replace(values={"iou": np.full(len(preset.thresholds), np.nan)} | {**nothing.values})
    row, column, pixels = peak(np.where(known, map, -1))
    iou = _overlaps(unit_range(map[known]), region.mask[known], preset.thresholds)
    return _scores(
        iou=iou,
        energy=energy(map[known], region.mask[known]),
        hit=is_near(region.mask, row, column, preset.tolerance),
        best_iou=iou.max(),
        **dict(zip(fixed, iou[np.searchsorted(preset.thresholds, preset.fixed)], strict=True)),
        tied=_share_of_several(pixels, map),
    )


def _scores(**values: ArrayLike) -> Scores:
    return Scores({name: np.asarray(value, np.float64) for name, value in values.items()}, Status.COUNTED.code)


def _no_scores(status: Status, *names: str) -> Scores:
    return Scores(dict.fromkeys(names, np.array(np.nan)), status.code)


def _share_of_several(pixels: int, map: np.ndarray) -> float:
    return pixels / map.size if pixels > 1 else 0.0


def _status(map: np.ndarray, region: Region) -> Status:
    if not np.isfinite(map).all():
        return Status.NOT_FINITE
    if not (region.mask > 0.5).any():
        return Status.EMPTY
    if region.difficult:
        return Status.DIFFICULT
    return Status.COUNTED if map.max() > map.min() else Status.CONSTANT


def _overlaps(values: np.ndarray, mask: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
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

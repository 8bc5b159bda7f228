"""Weakly supervised localisation as clovaai/wsolevaluation (Choe et al. 2020, arXiv 2001.07437) measures it.

A map is enlarged to the picture (cubic), brought to [0, 1] by its minimum and maximum, and cut at thresholds; a
constant map becomes 0 and counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dcls_jax.eval.boxes import Size, box_overlaps
from dcls_jax.eval.localisation.maps import finite_map, map_batch, presented, preset_of
from dcls_jax.eval.localisation.outlines import Outlines, all_outlines, largest_outlines
from dcls_jax.eval.status import Scores, Status

_NOTHING = np.zeros((1, 4), int)  # the box where nothing is above the threshold


@dataclass(frozen=True)
class BoxPreset:
    """How boxes are made of a map and judged.

    source: whose protocol it is. largest: the box of the largest outline alone, else those of all. overlaps: how much
    intersection over union is asked; of several, each may take a threshold of its own. thresholds: to choose the best
    of for all maps together, shares of a map's maximum.
    """

    source: str
    largest: bool
    overlaps: tuple[float, ...]
    thresholds: tuple[float, ...] = tuple(np.arange(0, 1, 0.001).tolist())


BOX_PRESETS = {
    "wsol": BoxPreset("MaxBoxAccV2, clovaai/wsolevaluation, 96f4b88", largest=False, overlaps=(0.3, 0.5, 0.7)),
    "wsol_v1": BoxPreset("MaxBoxAcc, clovaai/wsolevaluation, 96f4b88", largest=True, overlaps=(0.5,)),
    "cam": BoxPreset("Zhou et al. 2016 (arXiv 1512.04150), a fifth of the maximum", True, (0.5,), (0.2,)),
    "grad_cam": BoxPreset("Selvaraju et al. 2017 (arXiv 1610.02391), 15 % of the maximum", True, (0.5,), (0.15,)),
}


def boxes(map: ArrayLike, threshold: float, *, largest: bool) -> np.ndarray:
    """Boxes of what is above a threshold in a map (h, w) of values in [0, 1]: (n, 4) int, x0, y0, x1, y1.

    threshold: from 0 to 1, a share of the map's maximum. largest: only that of the outline of the largest area, of
    equals the last that begins in reading order; else of every outline, those around holes too. Where nothing is above
    the threshold, the box 0, 0, 0, 0. Equal to clovaai/wsolevaluation's, by OpenCV's contours: 255 levels, and x1 and
    y1 one pixel beyond, but within the map. Raises ValueError for anything but a finite map within [0, 1].
    """
    map = finite_map(map)
    if map.min() < 0 or map.max() > 1:
        raise ValueError(f"map has values from {map.min():g} to {map.max():g}, expected them within [0, 1]")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold (={threshold}) must be from 0 to 1, a share of the map's maximum")
    levels = _levels(map)
    found = _outlines(levels, _cuts([threshold], levels), largest).box
    return found if len(found) else _NOTHING


def _levels(map: np.ndarray) -> np.ndarray:
    return (map * 255).astype(np.uint8).astype(int)  # truncated


def _cuts(thresholds: ArrayLike, levels: np.ndarray) -> np.ndarray:
    return (np.asarray(thresholds, float) * levels.max()).astype(int)


def _outlines(levels: np.ndarray, cuts: np.ndarray, largest: bool) -> Outlines:
    height, width = levels.shape
    cut, box = largest_outlines(levels, cuts) if largest else all_outlines(levels, cuts)
    return Outlines(cut, np.minimum(box, [width, height, width - 1, height - 1]))


def best_overlaps(map: ArrayLike, boxes: ArrayLike, preset: BoxPreset, *, size: Size | None = None) -> np.ndarray:
    """Of one map (h, w), the best intersection over union with any of the boxes (k, 4) at each threshold: (T,) float64.

    boxes: x0, y0, x1, y1 in the map's pixels, or in those of a picture of `size` (H, W), to which it is enlarged.
    Raises ValueError for a map that is not finite, and for no boxes.
    """
    truth = _checked_boxes(boxes)
    levels = _levels(presented(map, size))
    cuts, at = np.unique(_cuts(preset.thresholds, levels), return_inverse=True)
    cut, found = _outlines(levels, cuts, preset.largest)
    best = np.zeros(len(cuts))
    np.maximum.at(best, cut, box_overlaps(found, truth).max(1))
    best[np.bincount(cut, minlength=len(cuts)) == 0] = box_overlaps(_NOTHING, truth).max()
    return best[at]


def best_accuracy(overlaps: ArrayLike, preset: BoxPreset, right: ArrayLike | None = None) -> float:
    """Of overlaps (maps, T), the share with enough at the best threshold, as a mean over how much is enough.

    right: (maps,) bool, those that may count; all unless given. NaN of no maps.
    """
    overlaps = np.asarray(overlaps)
    if not len(overlaps):
        return float("nan")
    counts = np.ones(len(overlaps), bool) if right is None else np.asarray(right, bool)
    return float(np.mean([(overlaps >= enough)[counts].sum(0).max() / len(counts) for enough in preset.overlaps]))


def box_scores(map: ArrayLike, boxes: ArrayLike, preset: BoxPreset, *, size: Size | None = None) -> Scores:
    """`best_overlaps` of one map of a data set, with a status: {"overlap" (T,), "dead"}.

    dead: 1 for a map that is constant or not finite, which counts as one of zeros, as in the original; else 0.
    """
    map = np.asarray(map, np.float64)
    dead = not np.isfinite(map).all() or map.min() == map.max()
    if not len(np.asarray(boxes)):
        return Scores({"overlap": np.full(len(preset.thresholds), np.nan), "dead": np.array(np.nan)}, Status.EMPTY.code)
    overlaps = best_overlaps(np.zeros_like(map) if dead else map, boxes, preset, size=size)
    return Scores({"overlap": overlaps, "dead": np.array(float(dead))}, Status.COUNTED.code)


def box_accuracy(
    maps: ArrayLike,
    boxes: Sequence[ArrayLike],
    *,
    preset: str = "wsol",
    size: Size | None = None,
    right: ArrayLike | None = None,
) -> float:
    """Share of maps (B, h, w) whose boxes find an object, from 0 to 1.

    preset: "wsol" is MaxBoxAccV2, "wsol_v1" MaxBoxAcc, with one threshold for all maps, the best for each overlap;
    "cam" and "grad_cam" have a fixed one. A constant map counts, as one of zeros.
    boxes: of each map an array (k, 4) of x0, y0, x1, y1 in the map's pixels, or in those of a picture of `size` (H, W),
    to which maps are enlarged first.
    right: (B,) bool, whether the network names the class, which makes it top-1 localisation; unless given, the class is
    not judged.

    Raises ValueError for an unknown preset, boxes or `right` of another number than maps, maps that are not finite, and
    a map without boxes.
    """
    maps, chosen = map_batch(maps), preset_of(preset, BOX_PRESETS)
    if len(boxes) != len(maps):
        raise ValueError(f"boxes are of {len(boxes)} pictures and maps of {len(maps)}, expected as many of both")
    if right is not None and np.shape(right) != (len(maps),):
        raise ValueError(f"right has shape {np.shape(right)}, expected ({len(maps)},), one for each map")
    truth = [_checked_boxes(of) for of in boxes]
    overlaps = [best_overlaps(map, of, chosen, size=size) for map, of in zip(maps, truth, strict=True)]
    return best_accuracy(overlaps, chosen, right)


def _checked_boxes(boxes: ArrayLike) -> np.ndarray:
    boxes = np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or not np.isfinite(boxes).all():
        raise ValueError(f"boxes of a map have shape {boxes.shape}, expected (k, 4) finite numbers, k at least 1")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"boxes of a map are {boxes.tolist()}, expected x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    return boxes

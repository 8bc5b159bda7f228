"""PxAP, clovaai/wsolevaluation's pixel-wise average precision (Choe et al. 2020, arXiv 2001.07437)."""

import numpy as np
from numpy.typing import ArrayLike

from dcls_jax.eval.localisation.maps import map_batch, presented

_EDGES = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])  # of the bins in which values are counted


def pixel_counts(map: ArrayLike, mask: ArrayLike, ignore: ArrayLike | None = None) -> np.ndarray:
    """How many pixels inside and outside a mask (H, W) have a value in each of PxAP's bins: (2, bins) int64.

    map: (h, w), enlarged to the mask and brought to [0, 1]. ignore: (H, W) bool, pixels that do not count.
    """
    mask = np.asarray(mask, bool)
    values, counted = presented(map, mask.shape), ~np.zeros_like(mask) if ignore is None else ~np.asarray(ignore, bool)
    return np.stack([np.histogram(values[side & counted], _EDGES)[0] for side in (mask, ~mask)])


def average_precision(counts: ArrayLike) -> float:
    """Area under the curve of precision over recall of pixel counts (2, bins), by steps: from 0 to 1."""
    inside, all_found = (np.cumsum(side[::-1]) for side in (np.asarray(counts)[0], np.sum(counts, 0)))
    if not inside[-1]:
        raise ValueError("masks are empty, expected at least one pixel inside")
    recall, precision = inside / inside[-1], inside / all_found.clip(1)
    return float((precision * np.diff(recall, prepend=0)).sum())


def pixel_average_precision(maps: ArrayLike, masks: ArrayLike, ignore: ArrayLike | None = None) -> float:
    """PxAP, the average precision of maps (B, h, w) as classifiers of the pixels of all masks (B, H, W): from 0 to 1.

    Maps are enlarged to the masks' size (cubic) and brought to [0, 1] each. ignore: (B, H, W) bool, pixels that do not
    count. Raises ValueError for arrays that do not fit together, maps that are not finite, and masks all empty.
    """
    maps, masks = map_batch(maps), np.asarray(masks, bool)
    left_out = np.zeros_like(masks) if ignore is None else np.asarray(ignore, bool)
    if masks.ndim != 3 or len(masks) != len(maps) or left_out.shape != masks.shape:
        found = f"{masks.shape} and ignore {left_out.shape}"
        raise ValueError(f"masks have shape {found}, expected both ({len(maps)}, H, W) for {len(maps)} maps")
    return average_precision(sum(map(pixel_counts, maps, masks, left_out)))

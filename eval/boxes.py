"""Boxes x0, y0, x1, y1 of pixels counted from 0, both ends inside."""

import numpy as np
from numpy.typing import ArrayLike

Size = tuple[int, int]  # height, width


def box_mask(boxes: ArrayLike, size: Size) -> np.ndarray:
    """The union of boxes (k, 4) as a mask of size (H, W): bool."""
    mask = np.zeros(size, bool)
    for x0, y0, x1, y1 in np.asarray(boxes, int):
        mask[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = True
    return mask


def scaled_boxes(boxes: ArrayLike, old: Size, new: Size) -> np.ndarray:
    """Boxes (k, 4) of a picture of size (H, W) in the pixels of another size, truncated: int.

    As clovaai/wsolevaluation does for ground truth.
    """
    (height, width), (new_height, new_width) = old, new
    return (np.asarray(boxes, float) * ([new_width, new_height] * 2) / ([width, height] * 2)).astype(int)


def box_overlaps(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Intersection over union of boxes (n, 4) with boxes (m, 4), counted in pixels: (n, m) float64."""
    a, b = np.asarray(a)[:, None], np.asarray(b)[None]
    inside = _pixels(np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], -1))
    return inside / (_pixels(a) + _pixels(b) - inside)


def _pixels(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[..., 2:] - boxes[..., :2] + 1, 0).prod(-1)

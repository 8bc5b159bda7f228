"""One map against one mask: the pointing game, energy, the highest pixels; and two maps by their highest pixels.

A map is enlarged to the mask (bilinear, half-pixel centres, no antialiasing), in float64 on the CPU, because every
picture has a size of its own.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.eval.localisation.maps import checked_mask, enlarged, finite_map


class Peak(NamedTuple):
    """Where a map is largest, the first such pixel in reading order, and how many pixels are as large."""

    row: int
    column: int
    pixels: int


def peak(map: np.ndarray) -> Peak:
    """The peak of a map (H, W)."""
    row, column = np.unravel_index(map.argmax(), map.shape)
    return Peak(int(row), int(column), int((map == map.max()).sum()))


def is_near(mask: np.ndarray, row: int, column: int, tolerance: float) -> bool:
    """Whether a pixel of the mask (H, W) is nearer to a place than `tolerance` pixels."""
    reach = int(tolerance)
    top, left = max(row - reach, 0), max(column - reach, 0)
    rows, columns = np.nonzero(mask[top : row + reach + 1, left : column + reach + 1])
    return bool(((rows + top - row) ** 2 + (columns + left - column) ** 2 < tolerance**2).any())


def energy(map: np.ndarray, weight: np.ndarray) -> float:
    """Share of a map's sum inside, each pixel to the extent of its weight: map and weight (H, W)."""
    return float((map * weight).sum() / map.sum())


def highest_inside(map: np.ndarray, mask: np.ndarray) -> tuple[float, int]:
    """Of the highest `mask.sum()` pixels the share inside, and how many pixels are equal at the edge of these.

    Where some of the equal ones are among the highest and others not, the share is what all choices give on average.
    """
    count = int(mask.sum())
    last = np.partition(map, map.size - count, axis=None)[map.size - count]
    above, equal = map > last, map == last
    places = count - int(above.sum())
    found = (above & mask).sum() + places * (equal & mask).sum() / equal.sum()
    return float(found / count), int(equal.sum()) if places < equal.sum() else 1


def pointing_hit(map: ArrayLike, mask: ArrayLike, *, tolerance: float = 15) -> bool:
    """The pointing game: whether the mask has a pixel strictly nearer than `tolerance` to the map's largest value.

    map: (h, w), enlarged to the mask; of equal values the first in reading order is meant. mask: (H, W) bool at the
    picture's own size, in whose pixels the tolerance is. Raises ValueError for a map that is not finite, an empty mask
    and a tolerance that is not positive. TorchRay's rule (benchmark/pointing_game.py; Zhang et al. 2016, arXiv
    1608.00507).
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance (={tolerance}) must be positive: 1 asks for the very pixel")
    map, mask = _fitted(map, mask)
    row, column, _ = peak(map)
    return is_near(mask, row, column, tolerance)


def energy_inside(map: ArrayLike, mask: ArrayLike) -> float:
    """Share of the map's sum inside the mask.

    map: (h, w), enlarged to the mask, and taken as it is: of a map with negative values take the ReLU first, or the
    share may lie outside [0, 1]. mask: (H, W) bool. Raises ValueError for a map that is not finite or adds up to 0, and
    for an empty mask. Energy-based pointing game of Score-CAM (Wang et al. 2020, arXiv 1910.01279), with masks.
    """
    map, mask = _fitted(map, mask)
    if map.sum() == 0:
        raise ValueError("map adds up to 0, so that no share of it is inside the mask")
    return energy(map, mask)


def top_n_inside(map: ArrayLike, mask: ArrayLike) -> float:
    """Of the `mask.sum()` highest pixels of the map, the share inside the mask.

    map: (h, w), enlarged to the mask; where pixels are equal at the edge of these, what all choices give on average.
    mask: (H, W) bool. Raises ValueError for a map that is not finite and for an empty mask. Schulz et al. 2020 (arXiv
    2001.00396), scripts/eval_bounding_boxes.py of BioroboticsLab/IBA-paper-code.
    """
    return highest_inside(*_fitted(map, mask))[0]


def top_overlap(a: ArrayLike, b: ArrayLike, *, share: float = 0.1) -> dict[str, Array]:
    """How far the highest tenths of two maps (H, W) agree: {"iou", "dice"}, float32 scalars. Jit and vmap at will.

    The highest are those strictly above the map's own (1 - share) percentile. NaN if a map is constant or not finite.
    Raises ValueError for maps of two shapes and a share outside (0, 1). harmonization/evaluation/metrics.py of
    serre-lab/Harmonization (Fel et al. 2022, arXiv 2211.04533).
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"top_overlap compares maps of one shape, got {a.shape} and {b.shape}")
    if not 0 < share < 1:
        raise ValueError(f"share (={share}) must be between 0 and 1")
    # What is above a value between two neighbours of the sorted map is what is above the lower one, without rounding.
    lower = int(np.floor(round((1 - share) * (a.size - 1), 6)))
    high_a, high_b = (map > jnp.sort(map, axis=None)[lower] for map in (a, b))
    both, either = (high_a & high_b).sum(), (high_a | high_b).sum()
    alive = jnp.stack([jnp.isfinite(map).all() & (map.max() > map.min()) for map in (a, b)]).all()
    iou, dice = both / jnp.maximum(either, 1), 2 * both / jnp.maximum(both + either, 1)
    return {"iou": jnp.where(alive, iou, jnp.nan), "dice": jnp.where(alive, dice, jnp.nan)}


def _fitted(map: ArrayLike, mask: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    inside = checked_mask(mask)
    return enlarged(finite_map(map), inside.shape), inside

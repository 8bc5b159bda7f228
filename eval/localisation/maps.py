"""Maps, masks and presets as metrics take them: checked, in float64, and at the size of a picture."""

from collections.abc import Callable, Mapping
from functools import lru_cache, reduce
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from dcls_jax.eval.boxes import Size

Interpolation = Literal["bilinear", "cubic"]
T = TypeVar("T")


def finite_map(map: ArrayLike) -> np.ndarray:
    """A map (h, w) as float64. Raises ValueError for another shape, and for values that are not finite."""
    map = np.asarray(map, np.float64)
    if map.ndim != 2 or not map.size:
        raise ValueError(f"map has shape {map.shape}, expected (h, w)")
    if not np.isfinite(map).all():
        raise ValueError(f"map has {np.count_nonzero(~np.isfinite(map))} values that are not finite, expected none")
    return map


def map_batch(maps: ArrayLike) -> np.ndarray:
    """Maps (B, h, w), at least one. Raises ValueError for another shape, and names a map that is not finite."""
    maps = np.asarray(maps)
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"maps have shape {maps.shape}, expected (B, h, w)")
    bad = np.flatnonzero(~np.isfinite(maps).all((1, 2))).tolist()
    if bad:
        raise ValueError(f"maps hold values that are not finite, the first in map {bad[0]} of {len(maps)}")
    return maps


def checked_mask(mask: ArrayLike) -> np.ndarray:
    """A mask (H, W) as bool. Raises ValueError for another shape, other values than 0 and 1, and an empty mask."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, expected (H, W)")
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ValueError(f"mask has values of dtype {mask.dtype} other than 0 and 1, expected bool")
    if not mask.any():
        raise ValueError(f"mask of shape {mask.shape} is empty, expected at least one pixel inside")
    return mask.astype(bool)


def preset_of(name: str, presets: Mapping[str, T]) -> T:
    """The preset of that name. Raises ValueError, naming those there are."""
    if name not in presets:
        raise ValueError(f"preset (={name!r}) must be one of {', '.join(presets)}")
    return presets[name]


def enlarged(map: np.ndarray, size: Size, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """A map (h, w) at a picture's size (H, W), with half-pixel centres and no antialiasing: float64.

    bilinear: torch's `align_corners=False`; plateaus stay flat to the bit, for the place of the maximum depends on such
    ties. cubic: OpenCV's `INTER_CUBIC`. A map that has the size already is as it was.
    """
    map = np.asarray(map, np.float64)
    for axis, new in ((1, size[1]), (0, size[0])):
        if new != map.shape[axis]:
            map = _along(map, *_taps(map.shape[axis], new, interpolation), axis)
    return map


def unit_range(map: np.ndarray) -> np.ndarray:
    """A map less its minimum, over its range: within [0, 1]; of a constant map zeros."""
    low = map.min()
    return (map - low) / (map - low).max() if map.max() > low else np.zeros_like(map)


def presented(map: ArrayLike, size: Size | None = None) -> np.ndarray:
    """A map (h, w) as clovaai/wsolevaluation presents it: enlarged to a size (H, W), if given (cubic), then min-max."""
    map = finite_map(map)
    return unit_range(map if size is None else enlarged(map, size, "cubic"))


def _along(map: np.ndarray, pixels: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    # Term by term, where a matrix product would add in an order that depends on the place.
    spread = weights[:, None, :] if axis else weights[..., None]
    terms = (map.take(pixel, axis) * weight for pixel, weight in zip(pixels, spread, strict=True))
    return reduce(np.add, terms)


@lru_cache
def _taps(old: int, new: int, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray]:
    """Which of the old pixels a new one takes, and their weights: (taps, new) each; the border's pixel goes on."""
    kernel, reach = _KERNELS[interpolation]
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    if interpolation == "bilinear":
        centre = centre.clip(0, old - 1)  # the same beyond the border, without a rounding
    near = np.floor(centre) + np.arange(1 - reach, 1 + reach)[:, None]
    return near.clip(0, old - 1).astype(np.intp), kernel(np.abs(centre - near))


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys 1981, with OpenCV's a."""
    inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, inner, outer)


_KERNELS: dict[Interpolation, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (lambda x: 1 - x, 1),
    "cubic": (_cubic, 2),
}

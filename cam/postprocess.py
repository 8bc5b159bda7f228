"""From raw signed maps to maps for the eye or the metric."""

import jax
import jax.numpy as jnp
from jax import Array


def normalise(maps: Array) -> Array:
    """Each map's range onto [0, 1]: (..., h, w). A constant map becomes 0, never NaN."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return jnp.where(high > low, (maps - low) / jnp.where(high > low, high - low, 1), 0)


def resize(maps: Array, size: int | tuple[int, int]) -> Array:
    """Bilinear with half-pixel centres, as torch's `align_corners=False`: (B, h, w) -> (B, *size)."""
    height, width = (size, size) if isinstance(size, int) else size
    return jax.image.resize(maps, (maps.shape[0], height, width), "bilinear")


def postprocess(
    maps: Array,
    *,
    relu: bool = True,
    normalise: bool = True,
    floor: float | None = None,
    size: int | tuple[int, int] | None = None,
) -> Array:
    """Raw maps (B, h, w) through the chosen steps in this order: ReLU, min-max to [0, 1], floor, bilinear resize.

    normalise: per map; a constant map becomes 0. floor: values below it are raised to it. Returns (B, h, w), or
    (B, *size), in the maps' dtype.
    """
    if relu:
        maps = jax.nn.relu(maps)
    if normalise:
        maps = _normalise(maps)
    if floor is not None:
        maps = jnp.maximum(maps, floor)
    return maps if size is None else resize(maps, size)


_normalise = normalise  # the option of the same name hides it

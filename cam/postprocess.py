"""From raw signed maps to maps for the eye or the metric."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Combine = Literal["mean", "max", "product"]


def normalise(maps: ArrayLike) -> Array:
    """Each map's range onto [0, 1]: (..., h, w). A constant map, or one with NaN, becomes 0: see `dead_maps`."""
    maps = jnp.asarray(maps)
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return jnp.where(high > low, (maps - low) / jnp.where(high > low, high - low, 1), 0)


def dead_maps(maps: ArrayLike) -> Array:
    """Which maps (..., h, w) have nothing to show, as they are constant or not finite: (...) bool."""
    maps = jnp.asarray(maps)
    return ~(jnp.isfinite(maps).all((-2, -1)) & (maps.max((-2, -1)) > maps.min((-2, -1))))


def resize(maps: Array, size: int | tuple[int, int]) -> Array:
    """Bilinear with half-pixel centres: (B, h, w) -> (B, *size); an axis that shrinks is antialiased, as by jax.image.

    Enlarging is torch's `align_corners=False`, and keeps equal neighbours equal to the bit: ranks depend on such ties.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return _resize_axis(_resize_axis(maps, height, 1), width, 2)


def _resize_axis(maps: Array, size: int, axis: int) -> Array:
    old = maps.shape[axis]
    if size < old:
        shape = (*maps.shape[:axis], size, *maps.shape[axis + 1 :])
        return jax.image.resize(maps, shape, "bilinear")
    centre = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (old / size) - 0.5
    low = jnp.floor(centre).astype(jnp.int32)
    below, above = (jnp.take(maps, (low + step).clip(0, old - 1), axis) for step in (0, 1))
    fraction = jnp.expand_dims((centre - low).astype(maps.dtype), tuple(range(1, maps.ndim - axis)))
    return below + (above - below) * fraction


def postprocess(
    maps: ArrayLike,
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
    maps = jnp.asarray(maps)
    if relu:
        maps = jax.nn.relu(maps)
    if normalise:
        maps = _normalise(maps)
    if floor is not None:
        maps = jnp.maximum(maps, floor)
    return maps if size is None else resize(maps, size)


_normalise = normalise  # the option of the same name hides it


def combine_layers(
    maps: Sequence[ArrayLike], combine: Combine = "mean", *, size: int | tuple[int, int] | None = None
) -> Array:
    """Raw maps of several layers, each (B, h_l, w_l), as one map in [0, 1]: (B, *size).

    Layers differ in scale, so each goes through ReLU, bilinear resize and min-max before they meet, and min-max after.
    combine: "mean" as pytorch-grad-cam has it, "max" as torch-cam for Layer-CAM, "product" as torch-cam's RefineCAM.
    size: that of the largest map unless given. Raises ValueError for another way to combine.
    """
    ways: dict[str, Any] = {"mean": jnp.mean, "max": jnp.max, "product": jnp.prod}
    if combine not in ways:
        raise ValueError(f"combine (={combine!r}) must be one of {', '.join(ways)}")
    layers = [jnp.asarray(layer) for layer in maps]
    if size is None:
        size = max(layer.shape[1] for layer in layers), max(layer.shape[2] for layer in layers)
    return normalise(
        ways[combine](jnp.stack([normalise(resize(jax.nn.relu(layer), size)) for layer in layers]), axis=0)
    )

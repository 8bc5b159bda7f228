"""From raw signed maps to maps for the eye or the metric."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Combine = Literal["mean", "max", "product"]
Size = int | Sequence[int]


def normalise(maps: ArrayLike, *, space: int = 2) -> Array:
    """Each map's range onto [0, 1]: (..., *space). A constant map, or one with NaN, becomes 0: see `dead_maps`.

    space: how many axes a map has: 2 for pictures, 1 for sounds and tokens, 3 for volumes and videos.
    """
    return unit_range(*_with_axes(maps, space))


def unit_range(values: Array, axes: tuple[int, ...], epsilon: float = 0.0) -> Array:
    """Values minus their minimum along some axes, over their range plus epsilon; where they are constant or NaN, 0."""
    low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    return jnp.where(high > low, (values - low) / jnp.where(high > low, high - low + epsilon, 1), 0)


def dead_maps(maps: ArrayLike, *, space: int = 2) -> Array:
    """Which maps (..., *space) have nothing to show, as they are constant or not finite: (...) bool."""
    maps, axes = _with_axes(maps, space)
    return ~(jnp.isfinite(maps).all(axes) & (maps.max(axes) > maps.min(axes)))


def resize(maps: ArrayLike, size: Size, *, space: int = 2, antialias: bool = True) -> Array:
    """Linear with half-pixel centres: (..., *space) -> (..., *size).

    size: one number for every axis of a map, or one each. antialias: an axis that shrinks, as jax.image does, and torch
    only if told to. Enlarging is torch's `align_corners=False`, and keeps equal neighbours equal to the bit: ranks
    depend on such ties. Raises ValueError for a size that is not positive.
    """
    maps, axes = _with_axes(maps, space)
    for axis, length in zip(axes, checked_size(size, space), strict=True):
        maps = _resize_axis(maps, length, maps.ndim + axis, antialias)
    return maps


def resize_corners(maps: Array, size: tuple[int, ...]) -> Array:
    """Linear with corner pixels on corner pixels, torch's `align_corners=True`: (B, *space) -> (B, *size)."""

    def spread(new: int, old: int) -> Array:
        return jax.nn.relu(1 - jnp.abs(jnp.linspace(0, old - 1, new)[:, None] - jnp.arange(old))).astype(maps.dtype)

    for axis, new in enumerate(size, 1):
        spreading = jnp.tensordot(spread(new, maps.shape[axis]), maps, (1, axis), precision="highest")
        maps = jnp.moveaxis(spreading, 0, axis)
    return maps


def checked_size(size: Size, space: int, name: str = "size") -> tuple[int, ...]:
    """A length for each axis of a map. Raises ValueError, which calls it `name`."""
    lengths = tuple(size) if isinstance(size, Sequence) else (size,) * space
    whole = all(hasattr(length, "__index__") and length > 0 for length in lengths)
    if len(lengths) != space or not whole:
        raise ValueError(f"{name} (={size!r}) must be a positive whole number, or {space} of them")
    return tuple(length.__index__() for length in lengths)


def _with_axes(maps: ArrayLike, space: int) -> tuple[Array, tuple[int, ...]]:
    maps = jnp.asarray(maps)
    if maps.ndim < space:
        raise ValueError(f"maps have shape {maps.shape}, expected (..., *space) with {space} axes in space")
    return maps, tuple(range(-space, 0))


def _resize_axis(maps: Array, size: int, axis: int, antialias: bool) -> Array:
    old = maps.shape[axis]
    if size < old and antialias:
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
    size: Size | None = None,
    space: int = 2,
) -> Array:
    """Raw maps (..., *space) through the chosen steps in this order: ReLU, min-max to [0, 1], floor, linear resize.

    normalise: per map; a constant map becomes 0. floor: values below it are raised to it. size, space: as in `resize`.
    Returns (..., *space), or (..., *size), in the maps' dtype. Raises ValueError as `resize` does.
    """
    maps = jnp.asarray(maps)
    if relu:
        maps = jax.nn.relu(maps)
    if normalise:
        maps = _normalise(maps, space=space)
    if floor is not None:
        maps = jnp.maximum(maps, floor)
    return maps if size is None else resize(maps, size, space=space)


_normalise = normalise  # the option of the same name hides it


def combine_layers(
    maps: Sequence[ArrayLike], combine: Combine = "mean", *, size: Size | None = None, space: int = 2
) -> Array:
    """Raw maps of several layers, each (B, *space_l), as one map in [0, 1]: (B, *size).

    Layers differ in scale, so each goes through ReLU, min-max and linear resize before they meet, and min-max after:
    the order of pytorch-grad-cam, whose way to combine is "mean", and of torch-cam, "max" for Layer-CAM and "product"
    for RefineCAM. size: that of the largest map unless given. Raises ValueError for another way to combine.
    """
    ways: dict[str, Any] = {"mean": jnp.mean, "max": jnp.max, "product": jnp.prod}
    if combine not in ways:
        raise ValueError(f"combine (={combine!r}) must be one of {', '.join(ways)}")
    layers = [jnp.asarray(layer) for layer in maps]
    if size is None:
        size = tuple(max(lengths) for lengths in zip(*(layer.shape[-space:] for layer in layers), strict=True))
    shown = [postprocess(layer, size=size, space=space) for layer in layers]
    return normalise(ways[combine](jnp.stack(shown), axis=0), space=space)

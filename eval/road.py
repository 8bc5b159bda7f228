"""ROAD: confidence in images whose most, or least, important pixels are imputed from their neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.maps import unit_range
from dcls_jax.cam.masks import chosen_convention
from dcls_jax.cam.programs import run
from dcls_jax.cam.space import as_key, keys_of, noise_like
from dcls_jax.cam.targets import Targets
from dcls_jax.eval.imputation import filled
from dcls_jax.eval.rank import places
from dcls_jax.eval.scoring import (
    CHUNK,
    at_size,
    check_positive,
    checked_images,
    checked_maps,
    of_versions,
    predicted,
    without_maps,
)
from dcls_jax.models.transform import IMAGENET_STD

SPACE = (-2, -1)


@dataclass(frozen=True)
class RoadPreset:
    """Which pixels ROAD imputes, and where its noise is at home.

    percentiles: of the map's values, from which pixels go, equal ones all or none; else their order, of maps with range
    [0, 1] plus 1e-4 times a noise that all images share, so that equal values fall by chance. percentages: p unless
    given. pixel_noise: the noise of the imputation is in [0, 1] space, before the transform, else in the model's input.
    Each has its source in `source`.
    """

    name: str
    source: str
    percentiles: bool
    percentages: tuple[float, ...]
    pixel_noise: bool


ROAD_PRESETS = {
    preset.name: preset
    for preset in (
        RoadPreset(
            name="official",
            source="ROAD, arXiv 2202.00449; github.com/tleemann/road_evaluation at e6b9987",
            percentiles=False,
            percentages=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9),
            pixel_noise=True,
        ),
        RoadPreset(
            name="pytorch_grad_cam",
            source="github.com/jacobgil/pytorch-grad-cam at 084273b, ROADMostRelevantFirst and its like",
            percentiles=True,
            percentages=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
            pixel_noise=False,
        ),
    )
}


def impute(images: ArrayLike, keep: ArrayLike, *, noise: ArrayLike | Sequence[float] = 0.01, key: Array) -> Array:
    """Images (B, H, W, C) with the pixels that are not kept, keep (B, H, W) bool, from their neighbours, plus noise.

    A missing pixel is the mean of its neighbours inside the image, missing ones too, with weights 1/6 beside it and
    1/12 at its corners. noise: the deviation of normal noise added to it, one number or one per channel (C,). key: one,
    whose noise every image gets alike, or one per image (B,). An image of which nothing is kept becomes noise around 0.
    Raises ValueError for images and keep that do not fit. Noisy linear imputation, ROAD, arXiv 2202.00449.
    """
    x, kept = jnp.asarray(images), jnp.asarray(keep)
    if x.ndim != 4 or not x.size:
        raise ValueError(f"images have shape {x.shape}, expected (B, H, W, C)")
    if kept.shape != x.shape[:3] or kept.dtype != bool:
        raise ValueError(f"keep has shape {kept.shape} and dtype {kept.dtype}, expected {x.shape[:3]} and bool")
    deviation = _per_channel("noise", noise, x.shape[-1])
    return run(_impute, x, kept, deviation, keys_of(key, len(x)))


def _impute(images: Array, keep: Array, deviation: Array, keys: Array) -> Array:
    noisy = filled(images, keep) + deviation * noise_like(images.astype(jnp.float32), keys)
    return jnp.where(keep[..., None], images, noisy.astype(images.dtype))


def _per_channel(name: str, values: ArrayLike | Sequence[float], channels: int) -> Array:
    given = jnp.asarray(values, jnp.float32)
    if given.shape not in ((), (channels,)):
        raise ValueError(f"{name} has shape {given.shape}, expected one number or one for each of {channels} channels")
    return given


def road(
    model: Any,
    images: ArrayLike,
    maps: ArrayLike,
    targets: Targets | None = None,
    *,
    preset: str | RoadPreset = "official",
    percentages: Sequence[float] | None = None,
    noise: float = 0.01,
    std: ArrayLike | Sequence[float] = IMAGENET_STD,
    key: Array,
    numbers: ArrayLike | None = None,
    chunk: int = CHUNK,
) -> dict[str, Array]:
    """Confidence in imputed images: "morf" without their most, "lerf" without their least important pixels, (B, P).

    preset "official": morf at p lacks the share p of the pixels, and lerf all but the share p, as its authors have it.
    "pytorch_grad_cam": p is a percentile, and both lack the share 1 - p. percentages: p, the preset's unless given.
    noise, std: the deviation of the imputation's noise, and of the transform, one number or one per channel, by which
    noise of [0, 1] space is divided. key: one for a whole data set, as all images share the order's noise; numbers: the
    images' places in it (B,), by which each has its own noise of the imputation, 0 to B - 1 unless given.
    Raises ValueError for an unknown preset, percentages outside [0, 1], a map that is not finite, and maps, targets and
    images that do not fit. ROAD, arXiv 2202.00449.
    """
    rule = chosen_convention(preset, ROAD_PRESETS, "preset")
    shares = rule.percentages if percentages is None else tuple(float(p) for p in percentages)
    if not shares or not all(0 <= p <= 1 for p in shares):
        raise ValueError(f"percentages (={percentages!r}) must be shares between 0 and 1")
    check_positive(chunk=chunk)
    x, known = checked_images(model, images, targets)
    given = checked_maps(maps, x)
    places_in_data = jnp.arange(len(x)) if numbers is None else jnp.asarray(numbers)
    if places_in_data.shape != (len(x),):
        raise ValueError(f"numbers have shape {places_in_data.shape}, expected ({len(x)},)")
    deviation = noise / _per_channel("std", std, x.shape[-1]) if rule.pixel_noise else jnp.asarray(noise, jnp.float32)
    if as_key(key).ndim:
        raise ValueError(f"key has shape {as_key(key).shape}, expected one for all images")
    arguments = (model, x, given, known, deviation, as_key(key), places_in_data)
    return run(_road, *arguments, rule=rule, shares=shares, chunk=chunk)


def _road(
    model: Any,
    images: Array,
    maps: Array,
    targets: Any,
    deviation: Array,
    key: Array,
    numbers: Array,
    *,
    rule: RoadPreset,
    shares: tuple[float, ...],
    chunk: int,
) -> dict[str, Array]:
    batch = len(images)
    _, targets = predicted(model, images, targets, chunk)
    order_key, noise_key = jax.random.split(key)
    keys = jax.vmap(lambda number: jax.random.fold_in(noise_key, number))(numbers)
    large = at_size(maps, images.shape[1:3])
    values, limits = _percentiles(large, shares) if rule.percentiles else _orders(large, shares, order_key)

    def imputed(rows: Array, versions: Array) -> Array:
        kind, share = versions // len(shares), versions % len(shares)
        keep = values[kind, rows] < limits[kind, share, rows, None, None]
        return _impute(images[rows], keep, deviation, jax.vmap(jax.random.fold_in)(keys[rows], versions))

    scores = of_versions(model, imputed, targets, batch, 2 * len(shares), chunk)
    morf, lerf = jnp.split(without_maps(maps, scores), 2, axis=1)
    return {"morf": morf, "lerf": lerf}


def _orders(maps: Array, shares: tuple[float, ...], key: Array) -> tuple[Array, Array]:
    """Values (2, B, H, W) for morf and lerf, and limits (2, P, B) below which pixels are kept."""
    batch, *size = maps.shape
    noise = jax.random.normal(key, tuple(size))
    # The original adds 1e-5 to the range, so that the noise alone orders the pixels of maps of small values.
    flat = (unit_range(maps, SPACE) + 1e-4 * noise).reshape(batch, -1)
    # Sums that rounding makes equal fall in the order of their noise, as they would in the original's float64.
    from_most = places(flat, jnp.broadcast_to(noise.reshape(-1), flat.shape)).reshape(maps.shape)
    pixels = size[0] * size[1]
    removed = np.array([int(pixels * p) for p in shares])
    limits = jnp.asarray(np.stack([pixels - removed, removed]))
    return jnp.stack([pixels - 1 - from_most, from_most]), jnp.broadcast_to(limits[..., None], (*limits.shape, batch))


def _percentiles(maps: Array, shares: tuple[float, ...]) -> tuple[Array, Array]:
    """As `_orders`, by percentiles of the values: linear between the two nearest, NumPy's."""
    values = unit_range(maps, SPACE)
    both = jnp.stack([values, 1 - values])
    ordered = jnp.sort(both.reshape(*both.shape[:2], -1), axis=-1)
    position = (ordered.shape[-1] - 1) * np.asarray(shares)
    below = np.floor(position).astype(int)
    low, high = ordered[..., below], ordered[..., np.ceil(position).astype(int)]
    return both, jnp.moveaxis(low + (high - low) * jnp.asarray(position - below, jnp.float32), -1, 1)

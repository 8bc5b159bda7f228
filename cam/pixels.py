"""Methods that look at the pixels themselves: gradients to them, and what happens when they are hidden.

Each takes a model and targets as all methods do, and no layer. Gradients to the pixels (B, *size, C) are summed over
channels, as the other methods' terms are.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.gradient import Reduce, channel_sum
from dcls_jax.cam.maps import checked_size
from dcls_jax.cam.masks import falls, over_masks, stacked_scores, sum_over_masks
from dcls_jax.cam.model import Model, output_of
from dcls_jax.cam.space import axes, baseline_of, keys_of, noise_like, sample_keys
from dcls_jax.cam.targets import Targets, scores


def no_layer(method: str, layer: str | None) -> None:
    """Raise ValueError for a layer, where a method has no use for one."""
    if layer is not None:
        raise ValueError(f"layer (={layer!r}) must be None: {method} looks at the pixels and the whole model")


def pixel_gradient(model: Model, images: Array, targets: Targets) -> Array:
    """The gradient of the score to the pixels: images (B, *size, C) -> the same shape."""
    return jax.grad(lambda x: scores(output_of(model, x), targets).sum())(images)


def input_x_gradient(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_c x_c dy/dx_c: images (B, *size, C) -> raw maps (B, *size). Shrikumar et al., arXiv 1605.01713."""
    no_layer("input_x_gradient", layer)
    return reduce(images * pixel_gradient(model, images, targets))


def integrated_gradients(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    baseline: ArrayLike = 0.0,
    steps: int = 50,
    reduce: Reduce = channel_sum,
) -> Array:
    """sum_c (x_c - x'_c) int_0^1 dy/dx_c(x' + t (x - x')) dt: images (B, *size, C) -> raw maps (B, *size).

    The integral by Gauss and Legendre at `steps` points, captum's default. baseline: x', a number, one per image and
    channel (B, C), or images. A map sums to y(x) - y(x'), up to the error of the integral. Integrated gradients, arXiv
    1703.01365. Raises ValueError for steps below 1.
    """
    no_layer("integrated_gradients", layer)
    if steps < 1:
        raise ValueError(f"steps (={steps}) must be at least 1")
    start = baseline_of(baseline, images)
    points, weights = (jnp.asarray(x, images.dtype) for x in np.polynomial.legendre.leggauss(steps))

    def add(total: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        point, weight = step
        x = start + (1 + point) / 2 * (images - start)
        return total + weight / 2 * pixel_gradient(model, x, targets), None

    integral, _ = jax.lax.scan(add, jnp.zeros_like(images), (points, weights))
    return reduce((images - start) * integral)


def smooth_grad(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    key: Array,
    layer: str | None = None,
    samples: int = 50,
    noise: float = 0.15,
    reduce: Reduce = channel_sum,
) -> Array:
    """The mean gradient of noisy images: images (B, *size, C) -> raw maps (B, *size). SmoothGrad, arXiv 1706.03825.

    key: one, whose noise every image gets alike, or one per image (B,). noise: its standard deviation, of the range of
    the image's values. Raises ValueError for samples below 1.
    """
    no_layer("smooth_grad", layer)
    keys = sample_keys(key, len(images), samples)
    every = (*axes(images), images.ndim - 1)
    deviation = noise * (images.max(every, keepdims=True) - images.min(every, keepdims=True))

    def add(total: Array, keys: Array) -> tuple[Array, None]:
        noisy = images + deviation * noise_like(images, keys)
        return total + pixel_gradient(model, noisy, targets) / samples, None

    mean, _ = jax.lax.scan(add, jnp.zeros_like(images), keys)
    return reduce(mean)


def occlusion(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    baseline: ArrayLike = 0.0,
    masks_at_a_time: int = 32,
) -> Array:
    """The mean fall of the score over all windows that hide a pixel: images (B, *size, C) -> raw maps (B, *size).

    window, stride: in pixels, one number or one per axis: an eighth of the image and half a window unless given; the
    last window of an axis ends with the image. baseline: what the hidden pixels become, a number, one per image and
    channel (B, C), or images. Captum's `Occlusion`; Zeiler and Fergus, arXiv 1311.2901. Raises ValueError for windows
    that do not fit the image, and strides that leave pixels out.
    """
    no_layer("occlusion", layer)
    size = images.shape[1:-1]
    windows = tuple(max(1, n // 8) for n in size) if window is None else checked_size(window, len(size), "window")
    strides = tuple(max(1, n // 2) for n in windows) if stride is None else checked_size(stride, len(size), "stride")
    if any(w > n for w, n in zip(windows, size, strict=True)):
        raise ValueError(f"window (={window}) must not be larger than the images {size}")
    if any(s > w for s, w in zip(strides, windows, strict=True)):
        raise ValueError(f"stride (={stride}) must not be larger than the window {windows}")
    along = [_windows(*axis) for axis in zip(size, windows, strides, strict=True)]
    places = tuple(len(axis) for axis in along)
    hidden_by = baseline_of(baseline, images)

    def mask_at(index: Array) -> Array:
        mask = jnp.ones((), bool)
        for axis, place in zip(along, jnp.unravel_index(index, places), strict=True):
            mask = mask[..., None] & axis[place]
        return mask

    def hidden_scores(indices: Array) -> Array:
        masks = jax.vmap(mask_at)(indices)[:, None, ..., None]
        return stacked_scores(partial(output_of, model), jnp.where(masks, hidden_by, images), targets)

    y = scores(output_of(model, images), targets)
    fall = falls(y, over_masks(hidden_scores, math.prod(places), len(images), masks_at_a_time))
    # Sums over windows are sums along each axis in turn, as a window is a product of intervals.
    fall = jnp.moveaxis(fall, -1, 0).reshape(-1, *places)
    for i, axis in enumerate(along, 1):
        weights = axis.astype(fall.dtype)
        spreading = jnp.tensordot(weights / weights.sum(0), fall, (0, i), precision="highest")
        fall = jnp.moveaxis(spreading, 0, i)
    return fall


def _windows(length: int, width: int, step: int) -> Array:
    """Which pixels of an axis each window holds: (places, length) bool."""
    starts = np.minimum(np.arange(0, length - width + step, step), length - width)
    pixels = np.arange(length)
    return jnp.asarray((pixels >= starts[:, None]) & (pixels < starts[:, None] + width))


def rise(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    key: Array,
    layer: str | None = None,
    masks: int = 4000,
    cells: int | Sequence[int] = 7,
    keep: float = 0.5,
    probabilities: bool = True,
    masks_at_a_time: int = 32,
) -> Array:
    """mean_i y(x M_i) M_i / keep, M_i random masks: images (B, *size, C) -> raw maps (B, *size). RISE, 1806.07421.

    A mask is a grid of `cells` per axis, each kept with probability `keep`, enlarged linearly and shifted by up to a
    cell; all images get the same masks. key: one. masks: the paper's number for VGG16, which doubles it for ResNet50.
    probabilities: labels are scored by their softmax probability, other targets on their own scale. Raises ValueError
    for numbers out of range.
    """
    no_layer("rise", layer)
    size = images.shape[1:-1]
    grid = checked_size(cells, len(size), "cells")
    if masks < 1 or not 0 < keep < 1:
        raise ValueError(f"masks (={masks}) must be at least 1, and keep (={keep}) between 0 and 1")
    pitch = tuple(-(-n // c) for n, c in zip(size, grid, strict=True))
    whole = tuple((c + 1) * p for c, p in zip(grid, pitch, strict=True))

    def mask_at(index: Array) -> Array:
        drawing, shifting = jax.random.split(jax.random.fold_in(keys_of(key, 1)[0], index))
        small = jax.random.bernoulli(drawing, keep, grid).astype(images.dtype)
        shifts = jax.random.randint(shifting, (len(size),), 0, jnp.asarray(pitch))
        return jax.lax.dynamic_slice(jax.image.resize(small, whole, "linear"), shifts, size)

    def weighted(indices: Array, counts: Array) -> Array:
        drawn = jax.vmap(mask_at)(indices)
        masked = drawn[:, None, ..., None] * images
        y = stacked_scores(partial(output_of, model), masked, targets, probabilities=probabilities)
        return jnp.einsum("m,mb,m...->b...", counts, y.astype(drawn.dtype), drawn, precision="highest")

    return sum_over_masks(weighted, masks, len(images), masks_at_a_time) / (masks * keep)

"""Methods that weigh activations by what the score does when the image or the activation is disturbed.

Each takes any model with `features(images)` and `head(activations)`, and returns the raw signed map (B, *space) at
activation size, sum_k w_k A_k. Originals that sum the enlarged channels at image size give the same map: enlarging is
linear, so the order does not matter. Masked images pass through the model a fixed number of masks at a time, so that
memory is bounded; that number never changes a result. Group-CAM is in `grouping.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.gradient import Reduce, channel_sum
from dcls_jax.cam.maps import resize, resize_corners, unit_range
from dcls_jax.cam.masks import check_mask_space, chosen_convention, falls, over_masks, stacked_scores
from dcls_jax.cam.model import Model, output_of, split
from dcls_jax.cam.space import axes, baseline_of, keys_of, like_channels
from dcls_jax.cam.targets import Targets, scores


@dataclass(frozen=True)
class ScoreConvention:
    """Where implementations of Score-CAM part.

    probabilities: labels are scored by their softmax probability, else by their logit; other targets are scores on
    their own scale, as are heads of one logit. softmax_weights: the weights are the softmax of the scores over
    channels; else the scores themselves, and 0 for constant channels. align_corners: how masks are enlarged.
    normalise_first: masks get the range [0, 1] before they are enlarged, else after. epsilon: added to that range.
    """

    probabilities: bool = True
    softmax_weights: bool = False
    align_corners: bool = False
    normalise_first: bool = False
    epsilon: float = 0.0


# Score-CAM's authors (haofanwang/Score-CAM d312f14), jacobgil/pytorch-grad-cam 1.5, frgfm/torch-cam f44afef. The last
# subtracts the unmasked score first, which its softmax then ignores.
SCORE_CONVENTIONS = {
    "official": ScoreConvention(),
    "pytorch_grad_cam": ScoreConvention(False, True, align_corners=True, epsilon=1e-8),
    "torch_cam": ScoreConvention(False, True, normalise_first=True, epsilon=1e-8),
}


def score_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    convention: str | ScoreConvention = "official",
    masks_at_a_time: int = 32,
    reduce: Reduce = channel_sum,
) -> Array:
    """sum_k w_k A_k, w_k the score of the image times the enlarged A_k: images (B, *size, 3) -> raw maps (B, *space).

    Raises ValueError for an unknown convention. Score-CAM, arXiv 1910.01279; github.com/haofanwang/Score-CAM.
    """

    def unchanged(masks: Array, channel: Array, draw: Array) -> Array:
        return masks

    return _score_cam(model, images, targets, layer, convention, masks_at_a_time, 1, unchanged, reduce)


def ss_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    key: Array,
    layer: str | None = None,
    samples: int = 35,
    sigma: float = 2.0,
    convention: str | ScoreConvention = "official",
    masks_at_a_time: int = 32,
    reduce: Reduce = channel_sum,
) -> Array:
    """Score-CAM with scores averaged over masks plus noise N(0, sigma^2): images (B, *size, 3) -> raw maps (B, *space).

    key: one, whose noise every image gets alike, or one per image (B,). Raises ValueError as `score_cam`. SS-CAM,
    arXiv 2006.14255; samples and sigma are torch-cam's.
    """
    keys = keys_of(key, len(images))

    def noisy(masks: Array, channel: Array, sample: Array) -> Array:
        def noise(key: Array) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(key, channel), sample)
            return sigma * jax.random.normal(key, masks.shape[1:], masks.dtype)

        return masks + jax.vmap(noise)(keys)

    return _score_cam(model, images, targets, layer, convention, masks_at_a_time, samples, noisy, reduce)


def is_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    steps: int = 10,
    convention: str | ScoreConvention = "official",
    masks_at_a_time: int = 32,
    reduce: Reduce = channel_sum,
) -> Array:
    """Score-CAM with scores averaged over masks i/N M, i = 1..N: images (B, *size, 3) -> raw maps (B, *space).

    Raises ValueError as `score_cam`. IS-CAM, arXiv 2010.03023. torch-cam's `ISCAM` instead accumulates its factors,
    sum_{j<=i} j/N, and so amplifies the image up to 5.5 times for N = 10.
    """

    def faded(masks: Array, channel: Array, step: Array) -> Array:
        return masks * ((step + 1) / steps).astype(masks.dtype)

    return _score_cam(model, images, targets, layer, convention, masks_at_a_time, steps, faded, reduce)


def ablation_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    baseline: ArrayLike = 0.0,
    division: Literal["magnitude", "score", "none"] = "magnitude",
    masks_at_a_time: int = 32,
    reduce: Reduce = channel_sum,
) -> Array:
    """sum_k (y - y_k) / |y| A_k, y_k the score without channel k: images (B, *size, 3) -> raw maps (B, *space).

    Only the head runs again. baseline: what the channel becomes: a number, (C,), (B, C) or (B, *space, C). division:
    by |y|, by y as the paper and pytorch-grad-cam write it (a negative score then flips the map), or not at all; a
    score of 0 divides by 1. For images whose least activation is 0, as after a ReLU, division="score" is
    pytorch-grad-cam's `AblationCAM`; for others that sets channels to values which fall by 1e7 with each place in its
    mini-batch of 32, so that weights tell the place too. Raises ValueError for an unknown division. WACV 2020.
    """
    if division not in ("magnitude", "score", "none"):
        raise ValueError(f"division (={division!r}) must be 'magnitude', 'score' or 'none'")
    a, head = split(model, images, layer)
    batch, channels = len(a), a.shape[-1]
    baselines = baseline_of(baseline, a)

    def scores_without(indices: Array) -> Array:
        ablated = jnp.expand_dims(jax.nn.one_hot(indices, channels, dtype=bool), tuple(range(1, a.ndim)))
        return stacked_scores(head, jnp.where(ablated, baselines, a), targets)

    y = scores(head(a), targets)
    divisor = {"magnitude": jnp.abs(y), "score": y, "none": jnp.ones_like(y)}[division]
    fall = falls(y, over_masks(scores_without, channels, batch, masks_at_a_time))
    return reduce(like_channels((fall / jnp.where(divisor == 0, 1, divisor)).T, a) * a)


def _masks(maps: Array, size: tuple[int, ...], rule: ScoreConvention) -> Array:
    """Activation channels (N, *space) -> masks in [0, 1], (N, *size)."""
    enlarge = resize_corners if rule.align_corners else partial(resize, space=len(size))
    normalise = partial(unit_range, axes=tuple(range(-len(size), 0)), epsilon=rule.epsilon)
    return enlarge(normalise(maps), size) if rule.normalise_first else normalise(enlarge(maps, size))


def _score_cam(
    model: Model,
    images: Array,
    targets: Targets,
    layer: str | None,
    convention: str | ScoreConvention,
    masks_at_a_time: int,
    draws: int,
    vary: Callable[[Array, Array, Array], Array],
    reduce: Reduce,
) -> Array:
    """Score-CAM with each mask replaced by several: vary(masks (B, *size), channel, draw) -> (B, *size)."""
    rule = chosen_convention(convention, SCORE_CONVENTIONS)
    if draws < 1:
        raise ValueError(f"the number of masks per channel (={draws}) must be at least 1")
    a, _ = split(model, images, layer)
    check_mask_space(a, images)
    batch, *size, _ = images.shape
    channels = a.shape[-1]

    def masked_scores(indices: Array) -> Array:
        channel, draw = indices // draws, indices % draws
        maps = jnp.moveaxis(a[..., channel], -1, 0)  # (m, B, *space)
        masks = _masks(maps.reshape(-1, *maps.shape[2:]), tuple(size), rule)
        masks = jax.vmap(vary)(masks.reshape(-1, batch, *size), channel, draw)
        masked = images * masks[..., None].astype(images.dtype)
        return stacked_scores(partial(output_of, model), masked, targets, probabilities=rule.probabilities)

    weights = over_masks(masked_scores, channels * draws, batch, masks_at_a_time)
    weights = weights.reshape(channels, draws, batch).mean(1).T
    contrast = a.max(axes(a)) > a.min(axes(a))
    weights = jax.nn.softmax(weights) if rule.softmax_weights else jnp.where(contrast, weights, 0)
    return reduce(like_channels(weights, a) * a)

"""Methods that weigh activations by what the score does when the image or the activation is disturbed.

Each takes any model with `features(images)` and `head(activations)`, and returns the raw signed map (B, h, w) at
activation size, sum_k w_k A_k. Originals that sum the enlarged channels at image size give the same map: enlarging is
linear, so the order does not matter. Masked images pass through the model a fixed number of masks at a time, so that
memory is bounded; that number never changes a result. Group-CAM is in `group_cam.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from dcls_jax.cam.gradient import Model, Reduce, activations, channel_sum, head_from
from dcls_jax.cam.postprocess import resize
from dcls_jax.cam.targets import Targets, scores

Convention = TypeVar("Convention")


@dataclass(frozen=True)
class ScoreConvention:
    """Where implementations of Score-CAM part.

    probabilities: the target reads the softmax of the logits, else the logits. softmax_weights: the weights are the
    softmax of the scores over channels; else the scores themselves, and 0 for constant channels. align_corners: how
    masks are enlarged. normalise_first: masks get the range [0, 1] before they are enlarged, else after. epsilon: added
    to that range.
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
    """sum_k w_k A_k, w_k the score of the image times the enlarged A_k: images (B, H, W, 3) -> raw maps (B, h, w).

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
    """Score-CAM with scores averaged over masks plus noise N(0, sigma^2): images (B, H, W, 3) -> raw maps (B, h, w).

    key: one, whose noise every image gets alike, or one per image (B,). Raises ValueError as `score_cam`. SS-CAM,
    arXiv 2006.14255; samples and sigma are torch-cam's.
    """
    keys = jnp.broadcast_to(key, (len(images),))

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
    """Score-CAM with scores averaged over masks i/N M, i = 1..N: images (B, H, W, 3) -> raw maps (B, h, w).

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
    """sum_k (y - y_k) / |y| A_k, y_k the score without channel k: images (B, H, W, 3) -> raw maps (B, h, w).

    Only the head runs again. baseline: what the channel becomes, broadcast to (B, C). division: by |y|, by y as the
    paper and pytorch-grad-cam write it (a negative score then flips the map), or not at all; a score of 0 divides by 1.
    For images whose least activation is 0, as after a ReLU, division="score" is pytorch-grad-cam's `AblationCAM`; for
    others that sets channels to values which fall by 1e7 with each place in its mini-batch of 32, so that weights tell
    the place too. Raises ValueError for an unknown division. Ablation-CAM, WACV 2020.
    """
    if division not in ("magnitude", "score", "none"):
        raise ValueError(f"division (={division!r}) must be 'magnitude', 'score' or 'none'")
    a, head = activations(model, images, layer), head_from(model, layer)
    batch, *space, channels = a.shape
    baselines = jnp.broadcast_to(jnp.asarray(baseline, a.dtype), (batch, channels))
    baselines = baselines.reshape(batch, *(1 for _ in space), channels)

    def scores_without(indices: Array) -> Array:
        ablated = jax.nn.one_hot(indices, channels, dtype=bool).reshape(-1, 1, *(1 for _ in space), channels)
        return stacked_scores(head, jnp.where(ablated, baselines, a), targets)

    y = scores(head(a), targets)[:, None]
    divisor = {"magnitude": jnp.abs(y), "score": y, "none": jnp.ones_like(y)}[division]
    drop = y - over_masks(scores_without, channels, batch, masks_at_a_time).T
    return reduce(weighted(drop / jnp.where(divisor == 0, 1, divisor), a))


def weighted(weights: Array, a: Array) -> Array:
    """w_k A_k: weights (B, C), activations (B, ..., C) -> as the activations."""
    return jnp.expand_dims(weights.astype(a.dtype), tuple(range(1, a.ndim - 1))) * a


def over_masks(function: Callable[[Array], Any], masks: int, images: int, masks_at_a_time: int) -> Any:
    """function(indices (m,)) -> arrays (m, ...), called for all masks in turn: arrays (masks, ...).

    m is how many masks, each on every image, make up `masks_at_a_time`. Raises ValueError if that is less than 1.
    """
    if masks_at_a_time < 1:
        raise ValueError(f"masks_at_a_time (={masks_at_a_time}) must be at least 1")
    step = min(masks, max(1, masks_at_a_time // images))
    # The last chunk wraps around to masks that were seen already, so that all have one shape.
    indices = jnp.arange(-(-masks // step) * step).reshape(-1, step) % masks
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:masks], lax.map(function, indices))


def stacked_scores(
    classify: Callable[[Array], Array], x: Array, targets: Targets, *, probabilities: bool = False
) -> Array:
    """Scores (m, B) of m versions of a batch, x (m, B, ...), which classify, (N, ...) -> logits, sees as one.

    probabilities: the target reads the softmax of the logits. Raises ValueError if the model's output has no classes.
    """
    logits = classify(x.reshape(-1, *x.shape[2:]))
    if probabilities and logits.ndim < 2:
        raise ValueError(
            f"the model's output has shape {logits.shape}, expected logits (B, classes) for probabilities; "
            "for a regression give the convention as an object with probabilities=False"
        )
    logits = logits.reshape(*x.shape[:2], *logits.shape[1:])
    if probabilities:
        logits = jax.nn.softmax(logits.astype(jnp.float32))
    return jax.vmap(lambda logits: scores(logits, targets))(logits)


def chosen_convention(convention: str | Convention, known: Mapping[str, Convention]) -> Convention:
    """A convention itself, or the known one of that name. Raises ValueError for an unknown name."""
    if not isinstance(convention, str):
        return convention
    if convention not in known:
        raise ValueError(f"convention (={convention!r}) must be one of {', '.join(known)}")
    return known[convention]


def unit_range(maps: Array, epsilon: float = 0.0) -> Array:
    """Each map (..., h, w) minus its minimum, over its range plus epsilon; a constant map becomes 0, never NaN."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return (maps - low) / jnp.where(high > low, high - low + epsilon, 1)


def resize_corners(maps: Array, size: tuple[int, int]) -> Array:
    """Bilinear with corner pixels on corner pixels, torch's `align_corners=True`: (B, h, w) -> (B, *size)."""

    def spread(new: int, old: int) -> Array:
        return jax.nn.relu(1 - jnp.abs(jnp.linspace(0, old - 1, new)[:, None] - jnp.arange(old))).astype(maps.dtype)

    rows, columns = (spread(new, old) for new, old in zip(size, maps.shape[1:], strict=True))
    return jnp.einsum("Hh,bhw,Ww->bHW", rows, maps, columns, precision="highest")


def _masks(maps: Array, size: tuple[int, int], rule: ScoreConvention) -> Array:
    """Activation channels (N, h, w) -> masks in [0, 1], (N, *size)."""
    enlarge = resize_corners if rule.align_corners else resize
    if rule.normalise_first:
        return enlarge(unit_range(maps, rule.epsilon), size)
    return unit_range(enlarge(maps, size), rule.epsilon)


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
    """Score-CAM with each mask replaced by several: vary(masks (B, H, W), channel, draw) -> (B, H, W)."""
    rule = chosen_convention(convention, SCORE_CONVENTIONS)
    if draws < 1:
        raise ValueError(f"the number of masks per channel (={draws}) must be at least 1")
    a = activations(model, images, layer)
    batch, height, width, _ = images.shape
    channels = a.shape[3]

    def masked_scores(indices: Array) -> Array:
        channel, draw = indices // draws, indices % draws
        maps = jnp.moveaxis(a[..., channel], 3, 0)  # (m, B, h, w)
        masks = _masks(maps.reshape(-1, *maps.shape[2:]), (height, width), rule)
        masks = jax.vmap(vary)(masks.reshape(-1, batch, height, width), channel, draw)
        masked = images * masks[..., None].astype(images.dtype)
        return stacked_scores(
            lambda x: model.head(model.features(x)), masked, targets, probabilities=rule.probabilities
        )

    weights = over_masks(masked_scores, channels * draws, batch, masks_at_a_time)
    weights = weights.reshape(channels, draws, batch).mean(1).T
    contrast = a.max((1, 2)) > a.min((1, 2))
    weights = jax.nn.softmax(weights) if rule.softmax_weights else jnp.where(contrast, weights, 0)
    return reduce(weighted(weights, a))

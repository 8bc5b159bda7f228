"""Group-CAM: masks from groups of weighted channels, each weighed by the score that it restores to the blurred image.

The raw signed map (B, h, w) is at activation size: the originals sum masks at image size, but enlarging is linear and
keeps constants, so that the sum enlarged is theirs.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dcls_jax.cam.gradient import Model, activations_and_gradients
from dcls_jax.cam.perturbation import chosen_convention, over_masks, stacked_scores
from dcls_jax.cam.postprocess import resize
from dcls_jax.cam.targets import Targets


@dataclass(frozen=True)
class GroupConvention:
    """Where revisions of Group-CAM part.

    percentile: values of a group's map up to this percentile become 0 (None: kept). positive_scores: a group that
    lowers the score counts nothing, else negatively. normalised: the sum is over the masks, with range [0, 1] at image
    size, else over the groups' maps themselves. probabilities: the target reads the softmax of the logits, else the
    logits.
    """

    percentile: float | None = None
    positive_scores: bool = True
    normalised: bool = False
    probabilities: bool = True


# github.com/wofmanaf/Group-CAM at 0b61fdd, of the day of arXiv version 3, and at a7290b5, the last.
GROUP_CONVENTIONS = {
    "paper": GroupConvention(percentile=70.0, positive_scores=False, normalised=True),
    "official": GroupConvention(),
}


def group_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    convention: str | GroupConvention = "official",
    groups: int = 32,
    clustering: Literal["chunks", "k_means"] = "chunks",
    key: Array | None = None,
    blur_size: int = 51,
    blur_sigma: float = 50.0,
    masks_at_a_time: int = 32,
) -> Array:
    """sum_g s_g M_g, M_g = relu(sum_{k in g} <g_k> A_k): images (B, H, W, 3) -> raw maps (B, h, w).

    s_g is the probability of image x M_g + blurred image x (1 - M_g), M_g enlarged and with range [0, 1], minus that of
    the blurred image. A group without contrast counts nothing. clustering:
    contiguous chunks of channels, as `torch.chunk` makes them, or k-means of the weighted channels of each image,
    seeded by key, one or one per image (B,). Raises ValueError for an unknown convention or clustering, a
    missing key, an even blur_size, or no groups. Group-CAM, arXiv 2103.13859; github.com/wofmanaf/Group-CAM.
    """
    rule = chosen_convention(convention, GROUP_CONVENTIONS)
    if clustering not in ("chunks", "k_means"):
        raise ValueError(f"clustering (={clustering!r}) must be 'chunks' or 'k_means'")
    if groups < 1:
        raise ValueError(f"groups (={groups}) must be at least 1")
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    weighted = g.mean((1, 2), keepdims=True) * a
    channels = a.shape[3]
    if clustering == "chunks":
        labels = jnp.broadcast_to(jnp.arange(channels) // -(-channels // groups), (len(a), channels))
    elif key is None:
        raise ValueError("clustering (='k_means') needs a key")
    else:
        points = jnp.moveaxis(weighted, 3, 1).reshape(len(a), channels, -1)
        labels = jax.vmap(partial(k_means, clusters=groups))(points, key=jnp.broadcast_to(key, (len(a),)))
    members = jax.nn.one_hot(labels, groups, dtype=a.dtype)
    maps = jax.nn.relu(jnp.einsum("bhwc,bcg->gbhw", weighted, members, precision="highest"))
    if rule.percentile is not None:
        floor = jnp.percentile(maps.astype(jnp.float32), rule.percentile, axis=(2, 3), keepdims=True)
        maps = jnp.where(maps > floor, maps, 0)
    return _merge(model, images, targets, maps, gaussian_blur(images, blur_size, blur_sigma), rule, masks_at_a_time)


def _merge(
    model: Model,
    images: Array,
    targets: Targets,
    maps: Array,
    blurred: Array,
    rule: GroupConvention,
    masks_at_a_time: int,
) -> Array:
    """Sum of the groups' maps (groups, B, h, w), each times the score that its mask restores: (B, h, w)."""
    height, width = images.shape[1:3]

    def score(x: Array) -> Array:
        return stacked_scores(lambda x: model.head(model.features(x)), x, targets, probabilities=rule.probabilities)

    def weighted_maps(indices: Array) -> Array:
        small = maps[indices]
        masks = resize(small.reshape(-1, *small.shape[2:]), (height, width)).reshape(-1, len(images), height, width)
        low, high = masks.min((2, 3), keepdims=True), masks.max((2, 3), keepdims=True)
        span = jnp.where(high > low, high - low, 1)
        masks = ((masks - low) / span)[..., None].astype(images.dtype)
        increase = score(images * masks + blurred * (1 - masks)) - base
        increase = jax.nn.relu(increase) if rule.positive_scores else increase
        weights = jnp.where(high > low, increase[..., None, None], 0).astype(small.dtype)
        return weights * ((small - low) / span if rule.normalised else small)

    base = score(blurred[None])
    return over_masks(weighted_maps, len(maps), len(images), masks_at_a_time).sum(0)


def gaussian_blur(images: Array, size: int, sigma: float) -> Array:
    """Gaussian of odd size and border "reflect", as kornia's `gaussian_blur2d`: (B, H, W, C) -> the same shape.

    Raises ValueError for an even size, or a sigma that is not positive.
    """
    if size < 1 or size % 2 == 0 or sigma <= 0:
        raise ValueError(f"size (={size}) must be odd, and sigma (={sigma}) positive")
    reach = size // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)

    def along(length: int) -> np.ndarray:
        padded = np.pad(np.eye(length), ((reach, reach), (0, 0)), mode="reflect")
        return sum(t * padded[i : i + length] for i, t in enumerate(taps / taps.sum()))

    # Two products with small matrices, which hold the border too.
    rows, columns = (jnp.asarray(along(length), images.dtype) for length in images.shape[1:3])
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, images, columns, precision="highest")


def k_means(points: Array, clusters: int, key: Array, iterations: int = 50) -> Array:
    """Labels (N,) of points (N, D): k-means++ (Arthur and Vassilvitskii, 2007), then Lloyd's iterations.

    The same points and key give the same labels. A cluster that loses its points keeps its centre.
    """
    points = points.astype(jnp.float32)
    squares = (points**2).sum(1)

    def distances(centres: Array) -> Array:
        products = jnp.einsum("nd,kd->nk", points, centres, precision="highest")
        return jax.nn.relu(squares[:, None] - 2 * products + (centres**2).sum(1))

    def seed(nearest: Array, key: Array) -> tuple[Array, Array]:
        centre = points[jax.random.categorical(key, jnp.log(nearest))]
        return jnp.minimum(nearest, distances(centre[None])[:, 0]), centre

    def refine(_: Array, centres: Array) -> Array:
        members = jax.nn.one_hot(distances(centres).argmin(1), clusters)
        sizes = members.sum(0)[:, None]
        means = jnp.einsum("nk,nd->kd", members, points, precision="highest") / jnp.maximum(sizes, 1)
        return jnp.where(sizes > 0, means, centres)

    keys = jax.random.split(key, clusters)
    first = points[jax.random.randint(keys[0], (), 0, len(points))][None]
    _, others = lax.scan(seed, distances(first)[:, 0], keys[1:])
    return distances(lax.fori_loop(0, iterations, refine, jnp.concatenate([first, others]))).argmin(1)

"""Group-CAM: masks from groups of weighted channels, each weighed by the score that it restores to the blurred image.

The raw signed map (B, *space) is at activation size: the originals sum masks at image size, but enlarging is linear and
keeps constants, so that the sum enlarged is theirs.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dcls_jax.cam.gradient import Reduce, channel_sum
from dcls_jax.cam.maps import resize
from dcls_jax.cam.masks import check_mask_space, chosen_convention, falls, over_masks, stacked_scores
from dcls_jax.cam.model import Model, activations_and_gradients, output_of
from dcls_jax.cam.space import convolve_axes, keys_of, mean
from dcls_jax.cam.targets import Targets

Clustering = Literal["chunks", "k_means", "agglomerative"]


@dataclass(frozen=True)
class GroupConvention:
    """Where revisions of Group-CAM part.

    percentile: values of a group's map up to this percentile become 0 (None: kept). positive_scores: a group that
    lowers the score counts nothing, else negatively. normalised: the sum is over the masks, with range [0, 1] at image
    size, else over the groups' maps themselves. probabilities: labels are scored by their softmax probability, else by
    their logit; other targets are scores on their own scale, as are heads of one logit.
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
    clustering: Clustering = "chunks",
    key: Array | None = None,
    blur_size: int = 51,
    blur_sigma: float = 50.0,
    masks_at_a_time: int = 32,
    reduce: Reduce = channel_sum,
) -> Array:
    """sum_g s_g M_g, M_g = relu(sum_{k in g} <g_k> A_k): images (B, *size, 3) -> raw maps (B, *space).

    s_g is the score of image x M_g + blurred image x (1 - M_g), M_g enlarged and with range [0, 1], minus that of the
    blurred image. A group without contrast counts nothing. clustering: contiguous chunks of channels, as `torch.chunk`
    makes them, or of the weighted channels of each image: k-means, seeded by key, one or one per image (B,), or Ward's
    agglomerative clustering, by SciPy on the host. Raises ValueError for an unknown convention or clustering, a missing
    key, an even blur_size, or no groups. Group-CAM, arXiv 2103.13859; github.com/wofmanaf/Group-CAM.
    """
    rule = chosen_convention(convention, GROUP_CONVENTIONS)
    if clustering not in get_args(Clustering):
        raise ValueError(f"clustering (={clustering!r}) must be one of {', '.join(get_args(Clustering))}")
    if groups < 1:
        raise ValueError(f"groups (={groups}) must be at least 1")
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    check_mask_space(a, images)
    weighted = mean(g) * a
    members = jax.nn.one_hot(_groups_of(weighted, clustering, groups, key), groups, dtype=a.dtype)
    maps = jax.nn.relu(jnp.einsum("b...c,bcg->gb...", weighted, members, precision="highest"))
    if rule.percentile is not None:
        values = maps.astype(jnp.float32)
        floor = jnp.percentile(values, rule.percentile, axis=tuple(range(2, maps.ndim)), keepdims=True)
        maps = jnp.where(maps > floor, maps, 0)
    blurred = gaussian_blur(images, blur_size, blur_sigma)
    return reduce(_weighted_groups(model, images, targets, maps, blurred, rule, masks_at_a_time))


def _groups_of(weighted: Array, clustering: Clustering, groups: int, key: Array | None) -> Array:
    """Each image's group of each of its weighted channels (B, *space, C): int (B, C)."""
    batch, channels = len(weighted), weighted.shape[-1]
    points = jnp.moveaxis(weighted, -1, 1).reshape(batch, channels, -1)
    if clustering == "chunks":
        return jnp.broadcast_to(jnp.arange(channels) // -(-channels // groups), (batch, channels))
    if clustering == "agglomerative":
        labels = jax.ShapeDtypeStruct((batch, channels), jnp.int32)
        return jax.pure_callback(partial(_agglomerated, clusters=groups), labels, points)
    if key is None:
        raise ValueError("clustering (='k_means') needs a key")
    return jax.vmap(partial(k_means, clusters=groups))(points, key=keys_of(key, batch))


def _weighted_groups(
    model: Model,
    images: Array,
    targets: Targets,
    maps: Array,
    blurred: Array,
    rule: GroupConvention,
    masks_at_a_time: int,
) -> Array:
    """The groups' maps (groups, B, *space), each times the score that its mask restores: (B, *space, groups)."""
    size = images.shape[1:-1]
    space = tuple(range(2, 2 + len(size)))

    def score(x: Array) -> Array:
        return stacked_scores(partial(output_of, model), x, targets, probabilities=rule.probabilities)

    def restored(indices: Array) -> tuple[Array, Array]:
        small = maps[indices]
        masks = resize(small, size, space=len(size))
        low, high = masks.min(space, keepdims=True), masks.max(space, keepdims=True)
        span = jnp.where(high > low, high - low, 1)
        masks = ((masks - low) / span)[..., None].astype(images.dtype)
        shown = jnp.where(high > low, (small - low) / span if rule.normalised else small, 0)
        return score(images * masks + blurred * (1 - masks)), shown

    (base,) = score(blurred[None])
    restored_scores, shown = over_masks(restored, len(maps), len(images), masks_at_a_time)
    increase = -falls(base, restored_scores)
    increase = jax.nn.relu(increase) if rule.positive_scores else increase
    return jnp.moveaxis(jnp.expand_dims(increase, space).astype(shown.dtype) * shown, 0, -1)


def gaussian_blur(images: Array, size: int, sigma: float) -> Array:
    """Gaussian of odd size and border "reflect", as kornia's `gaussian_blur2d`: (B, *size, C) -> the same shape.

    Raises ValueError for an even size, or a sigma that is not positive.
    """
    if size < 1 or size % 2 == 0 or sigma <= 0:
        raise ValueError(f"size (={size}) must be odd, and sigma (={sigma}) positive")
    taps = np.exp(-0.5 * (np.arange(-(size // 2), size // 2 + 1) / sigma) ** 2)
    return convolve_axes(images, taps / taps.sum(), "reflect")


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


def _agglomerated(points: np.ndarray, clusters: int) -> np.ndarray:
    """Labels (B, N) of points (B, N, D) by Ward's linkage (doi 10.1080/01621459.1963.10500845), the host's."""
    from scipy.cluster.hierarchy import fcluster, linkage

    def one(image: np.ndarray) -> np.ndarray:
        if len(image) < 2:
            return np.zeros(len(image))
        return fcluster(linkage(np.asarray(image, np.float64), "ward"), clusters, "maxclust") - 1

    return np.stack([one(image) for image in np.asarray(points)]).astype(np.int32)

"""Batches mixed with themselves in reverse order: mixup, CutMix, and which of them by chance, as timm has it."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike


def mixup(
    images: Array, labels: Array, *, ratio: ArrayLike, num_classes: int, smoothing: float = 0.0
) -> tuple[Array, Array]:
    """ratio * images + (1 - ratio) * the batch reversed, and labels likewise (arXiv 1710.09412).

    images (B, H, W, C), floating; labels (B,), integers. Returns images of the same dtype and soft labels
    (B, num_classes), float32, of which `smoothing` is spread over all classes. Raises ValueError for integer images.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images (of dtype {images.dtype}) must be floating, to be mixed")
    share = jnp.asarray(ratio, images.dtype)
    return share * images + (1 - share) * images[::-1], _soft_labels(labels, ratio, num_classes, smoothing)


def cutmix(
    images: Array,
    labels: Array,
    *,
    box: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike],
    num_classes: int,
    smoothing: float = 0.0,
) -> tuple[Array, Array]:
    """Images with a box of the batch reversed in them; labels in the ratio of areas (arXiv 1905.04899).

    images (B, H, W, C); labels (B,), integers; box: (y0, y1, x0, x1), of which y1 and x1 are outside. Returns images of
    the same dtype and soft labels (B, num_classes), float32, of which `smoothing` is spread over all classes.
    """
    y0, y1, x0, x1 = box
    rows, columns = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    inside = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None]
    ratio = 1 - inside.sum(dtype=jnp.float32) / inside.size
    mixed = jnp.where(inside[None, :, :, None], images[::-1], images)
    return mixed, _soft_labels(labels, ratio, num_classes, smoothing)


def cutmix_box(key: Array, size: tuple[int, int], ratio: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """A box (y0, y1, x0, x1) around any pixel of an image, of its shape, that leaves `ratio` of it; cut off outside.

    key: a JAX random key; size: (H, W) of the image; ratio: in [0, 1]. Returns four int32 scalars.
    Source: `rand_bbox` of timm/data/mixup.py (in which, before version 1.0, a box of odd size was a pixel smaller).
    """
    share = jnp.sqrt(1 - ratio)

    def side(key: Array, length: int) -> tuple[Array, Array]:
        cut = (length * share).astype(jnp.int32)
        centre = jax.random.randint(key, (), 0, length)
        return jnp.maximum(centre - cut // 2, 0), jnp.minimum(centre + (cut + 1) // 2, length)

    rows, columns = (side(*each) for each in zip(jax.random.split(key), size, strict=True))
    return (*rows, *columns)


def random_mix(
    key: Array,
    images: Array,
    labels: Array,
    *,
    num_classes: int,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch: float = 0.5,
    smoothing: float = 0.0,
) -> tuple[Array, Array]:
    """A whole batch by CutMix with probability `switch`, otherwise by mixup, each with a ratio from Beta(alpha, alpha).

    key: a JAX random key, which alone decides. images, labels and what is returned as in `mixup`. An alpha of 0 leaves
    its kind out; with both 0, labels are smoothed only. Source: `Mixup` of timm/data/mixup.py, mode "batch".
    """
    choice, draw, place = jax.random.split(key, 3)

    def mixed() -> tuple[Array, Array]:
        ratio = jax.random.beta(draw, mixup_alpha, mixup_alpha)
        return mixup(images, labels, ratio=ratio, num_classes=num_classes, smoothing=smoothing)

    def cut() -> tuple[Array, Array]:
        ratio = jax.random.beta(draw, cutmix_alpha, cutmix_alpha)
        box = cutmix_box(place, (images.shape[1], images.shape[2]), ratio)
        return cutmix(images, labels, box=box, num_classes=num_classes, smoothing=smoothing)

    match mixup_alpha > 0, cutmix_alpha > 0:
        case False, False:
            return images, _soft_labels(labels, 1.0, num_classes, smoothing)
        case True, False:
            return mixed()
        case False, True:
            return cut()
    return jax.lax.cond(jax.random.bernoulli(choice, switch), cut, mixed)


def _soft_labels(labels: Array, ratio: ArrayLike, num_classes: int, smoothing: float) -> Array:
    ratio = jnp.asarray(ratio, jnp.float32)
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), smoothing)
    return ratio * smooth + (1 - ratio) * smooth[::-1]

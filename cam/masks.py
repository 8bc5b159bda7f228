"""What methods that mask the image or the activations have in common: scores of many versions."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from dcls_jax.cam.model import Head
from dcls_jax.cam.space import rounding
from dcls_jax.cam.targets import Targets, scores

Convention = TypeVar("Convention")


def chosen_convention(convention: str | Convention, known: Mapping[str, Convention]) -> Convention:
    """A convention itself, or the known one of that name. Raises ValueError for an unknown name."""
    if not isinstance(convention, str):
        return convention
    if convention not in known:
        raise ValueError(f"convention (={convention!r}) must be one of {', '.join(known)}")
    return known[convention]


def over_masks(function: Callable[[Array], Any], masks: int, images: int, masks_at_a_time: int) -> Any:
    """function(indices (m,)) -> arrays (m, ...), called for all masks in turn: arrays (masks, ...).

    m is how many masks, each on every image, make up `masks_at_a_time`. Raises ValueError if that is less than 1.
    """
    # The last chunk wraps around to masks that were seen already, so that all have one shape.
    indices = _chunks(masks, images, masks_at_a_time) % masks
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:masks], lax.map(function, indices))


def sum_over_masks(function: Callable[[Array, Array], Array], masks: int, images: int, masks_at_a_time: int) -> Array:
    """The sum of function(indices (m,), counts (m,)) over all masks in turn; of count 0 are those that fill the last m.

    m and errors as in `over_masks`; nothing is kept of a mask but its share of the sum.
    """

    def add(total: Array, indices: Array) -> tuple[Array, None]:
        return total + function(indices % masks, (indices < masks).astype(total.dtype)), None

    chunks = _chunks(masks, images, masks_at_a_time)
    shape = jax.eval_shape(function, chunks[0], jnp.ones(chunks.shape[1], jnp.float32))
    return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), chunks)[0]


def _chunks(masks: int, images: int, masks_at_a_time: int) -> Array:
    """Indices of masks, and further ones that fill the last row: (rows, m)."""
    if masks_at_a_time < 1:
        raise ValueError(f"masks_at_a_time (={masks_at_a_time}) must be at least 1")
    step = min(masks, max(1, masks_at_a_time // images))
    return jnp.arange(-(-masks // step) * step).reshape(-1, step)


def stacked_scores(run: Head, x: Array, targets: Targets, *, probabilities: bool = False) -> Array:
    """Scores (m, B) of m versions of a batch, x (m, B, ...), which run, (N, ...) -> output, sees as one.

    probabilities: labels, and soft labels, read the softmax of logits of several classes; any other target is a score
    on its own scale, as are the logit of a single class and a regression.
    """
    output = run(x.reshape(-1, *x.shape[2:]))
    output = jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), output)
    if probabilities and not callable(targets) and output.ndim == 3 and output.shape[2] > 1:
        output = jax.nn.softmax(output.astype(jnp.float32))
    return jax.vmap(lambda output: scores(output, targets))(output)


def falls(before: Array, after: Array) -> Array:
    """Scores (B,) minus those of masked versions (m, B): (m, B), 0 for images of which all differ by rounding alone."""
    fall = before - after
    noise = jnp.abs(fall).max(0) <= rounding(fall.dtype) * jnp.abs(before)
    return jnp.where(noise, 0, fall)


def check_mask_space(a: Array, images: Array) -> None:
    """Raise ValueError where activations cannot be enlarged to masks, as tokens of a picture have one axis in space."""
    if a.ndim != images.ndim:
        raise ValueError(
            f"activations have shape {a.shape}, expected {images.ndim - 2} axes in space as the images {images.shape} "
            "have: tokens become a grid by `tokens_to_grid`"
        )

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


def chosen_convention(
    convention: str | Convention, known: Mapping[str, Convention], name: str = "convention"
) -> Convention:
    """A convention itself, or the known one so called. Raises ValueError for an unknown one, which it calls `name`."""
    if not isinstance(convention, str):
        return convention
    if convention not in known:
        raise ValueError(f"{name} (={convention!r}) must be one of {', '.join(known)}")
    return known[convention]


def over_masks(function: Callable[[Array], Any], masks: int, images: int, masks_at_a_time: int) -> Any:
    """function(indices (m,)) -> arrays (m, ...), called for all masks in turn: arrays (masks, ...).

    m is at most how many masks, each on every image, make up `masks_at_a_time`. Raises ValueError if that is below 1.
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
    most = max(1, masks_at_a_time // images)
    rows = -(-masks // most)
    return jnp.arange(rows * -(-masks // rows)).reshape(rows, -1)  # of one length, and as few too many as can be


def stacked_scores(run: Head, x: Array, targets: Targets, *, probabilities: bool = False) -> Array:
    """Scores (m, B) of m versions of a batch, x (m, B, ...), which run, (N, ...) -> output, sees as one.

    probabilities: `confidences` in place of scores.
    """
    output = run(x.reshape(-1, *x.shape[2:]))
    output = jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), output)
    measure = confidences if probabilities else scores
    return jax.vmap(lambda output: measure(output, targets))(output)


def confidences(output: Any, targets: Targets) -> Array:
    """Scores (B,), of which labels and soft labels read the softmax of logits (B, classes) of several classes.

    Any other target is a score on its own scale, as are the logit of a single class and a regression.
    """
    if not callable(targets) and output.ndim == 2 and output.shape[1] > 1:
        output = jax.nn.softmax(output.astype(jnp.float32))
    return scores(output, targets)


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

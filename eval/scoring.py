"""What the metrics of faithfulness have in common: what they refuse, and the scores of many versions of the images."""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.checks import check_splits, check_targets_fit, listed, outline
from dcls_jax.cam.maps import Size, checked_size, resize
from dcls_jax.cam.masks import confidences, over_masks
from dcls_jax.cam.model import output_of
from dcls_jax.cam.programs import as_program, is_traced, leaf_types
from dcls_jax.cam.targets import Targets
from dcls_jax.eval.rank import tied_share

CHUNK = 32  # versions of images that a model sees at a time, unless told otherwise; it changes no result but rounding


def checked_images(model: Any, images: ArrayLike, targets: Targets | None) -> tuple[Array, Any]:
    """Images (B, H, W, C), and targets as a pytree. Raises ValueError where they and the model do not fit."""
    check_splits(model)
    x = jnp.asarray(images)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"images have shape {x.shape}, expected (B, H, W, C) with B at least 1")
    check_finite("", x)
    leaves, structure = jax.tree.flatten(model)
    output = _output(structure, leaf_types(model, leaves), jax.typeof(x))
    check_targets_fit(targets, output, optional=False)
    return x, None if targets is None else as_program(targets, output)


@lru_cache(256)
def _output(structure: Any, leaves: tuple[Any, ...], image: Any) -> Any:
    """The shapes of a model's output for images that fit it: once per shape."""
    model = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves])
    return outline(model, jax.ShapeDtypeStruct(image.shape, image.dtype), None)[1]


def checked_maps(maps: ArrayLike, images: Array) -> Array:
    """Maps (B, h, w) as float32. Raises ValueError unless there is one for each image, finite where it can be seen."""
    given = jnp.asarray(maps)
    if given.ndim != 3 or len(given) != len(images) or not given.size:
        raise ValueError(f"maps have shape {given.shape}, expected ({len(images)}, h, w), one for each image")
    check_finite("maps of ", given)
    return given.astype(jnp.float32)


def check_finite(what: str, values: Array) -> None:
    """Raise ValueError where values (B, ...), "maps of " say, are not finite; of traced ones nothing can be seen."""
    if not is_traced(values):
        finite = np.asarray(jnp.isfinite(values).all(tuple(range(1, values.ndim))))
        if not finite.all():
            raise ValueError(f"{what}{listed(np.flatnonzero(~finite))} are not finite: leave these images out")


def check_positive(**numbers: int) -> None:
    """Raise ValueError for numbers below 1, by their names."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} (={number}) must be at least 1")


def at_size(maps: Array, size: tuple[int, ...]) -> Array:
    """Maps (B, h, w) as metrics see them: linear with half-pixel centres, without antialiasing, (B, *size)."""
    return resize(maps, size, antialias=False)


def tied(maps: ArrayLike, *, size: Size | None = None) -> Array:
    """The share of each map's pixels that equal another pixel: maps (B, h, w), at the images' size if given -> (B,).

    Their order is decided by a preset's rule, not by the map: maps with a floor are mostly ties. float32. Raises
    ValueError for maps of another shape, or a size that is not positive.
    """
    given = jnp.asarray(maps)
    if given.ndim != 3 or not given.size:
        raise ValueError(f"maps have shape {given.shape}, expected (B, h, w)")
    if size is not None:
        given = at_size(given, checked_size(size, 2))
    return tied_share(given.reshape(len(given), -1))


def predicted(model: Any, images: Array, targets: Any, chunk: int) -> tuple[Any, Any]:
    """The output for images as they are, and the targets: None becomes the class with the largest logit."""
    output = over_masks(lambda rows: output_of(model, images[rows]), len(images), 1, chunk)
    return output, output.argmax(-1) if targets is None else targets


def of_versions(
    model: Any, make: Callable[[Array, Array], Array], targets: Any, images: int, versions: int, chunk: int
) -> Array:
    """Confidences (images, versions), make(rows (m,), numbers (m,)) -> those versions of those images (m, H, W, C).

    All versions of all images pass through the model `chunk` at a time, or a few less so that all chunks are of a size.
    """

    def some(pairs: Array) -> Array:
        rows, numbers = pairs // versions, pairs % versions
        return confidences(output_of(model, make(rows, numbers)), jax.tree.map(itemgetter(rows), targets))

    return over_masks(some, images * versions, 1, chunk).reshape(images, versions)


def without_maps(maps: Array, scores: Array) -> Array:
    """Scores (B, ...), NaN where the map (B, h, w) is not finite."""
    finite = jnp.isfinite(maps).all((1, 2))
    return jnp.where(jnp.expand_dims(finite, tuple(range(1, scores.ndim))), scores, jnp.nan)

"""What may be said of a map before it is scored: whether it counts, and how much of its order is decided by a rule."""

from enum import IntEnum

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.maps import Size, checked_size, resize
from dcls_jax.eval.rank import tied_share


class Status(IntEnum):
    """What becomes of an image: it counts, or why it does not."""

    COUNTED = 0
    CONSTANT_MAP = 1
    MAP_NOT_FINITE = 2


def status(maps: ArrayLike) -> Array:
    """The `Status` of each map: (B, h, w) -> int8 (B,). Raises ValueError for maps of another shape."""
    given = _maps(maps)
    constant = given.max((1, 2)) == given.min((1, 2))
    finite = jnp.isfinite(given).all((1, 2))
    found = jnp.where(constant, Status.CONSTANT_MAP, Status.COUNTED)
    return jnp.where(finite, found, Status.MAP_NOT_FINITE).astype(jnp.int8)


def tied(maps: ArrayLike, *, size: Size | None = None) -> Array:
    """The share of each map's pixels that equal another pixel: maps (B, h, w), at the images' size if given -> (B,).

    Their order is decided by a preset's rule, not by the map: maps with a floor are mostly ties. float32. Raises
    ValueError for maps of another shape, or a size that is not positive.
    """
    given = _maps(maps)
    if size is not None:
        given = resize(given, checked_size(size, 2), antialias=False)
    return tied_share(given.reshape(len(given), -1))


def _maps(maps: ArrayLike) -> Array:
    given = jnp.asarray(maps)
    if given.ndim != 3 or not given.size:
        raise ValueError(f"maps have shape {given.shape}, expected (B, h, w)")
    return given

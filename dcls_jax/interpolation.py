"""How one kernel element, at a real-valued position, spreads over the integer cells of one grid axis.

Each version of DCLS is separable, so an element's footprint on a grid is the product of one spread per axis.
Sources: v0 arXiv 2112.03740 (bilinear), v1, max and gauss arXiv 2306.00817; constants from the `dcls` package 0.1.1.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

Version = Literal["v0", "v1", "max", "gauss"]
VERSIONS: tuple[Version, ...] = get_args(Version)


def has_sigma(version: Version) -> bool:
    """Whether a version learns a width beside each position."""
    return version in ("max", "gauss")


def _abs(x: Array) -> Array:
    """|x| with slope 0 at 0, as in torch; JAX has slope 1 there, and positions and widths often are exactly 0."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def bilinear(position: Array, sigma: Array | None, cells: Array) -> Array:
    """The two cells around the position share it; what falls off the grid is lost."""
    # stop_gradient: floor moves with the position, so the left cell's share falls with slope -1 even at integers.
    left = jax.lax.stop_gradient(jnp.floor(position))
    share = position - left
    none = 0 * share  # and not 0, so that a position that is no number shows
    return jnp.where(cells == left, 1 - share, none) + jnp.where(cells == left + 1, share, none)


def triangle(position: Array, sigma: Array | None, cells: Array) -> Array:
    """max(0, 1 - |distance|)."""
    return jax.nn.relu(1 - _abs(cells - position))


def wide_triangle(position: Array, sigma: Array, cells: Array) -> Array:
    """max(0, 1 + |sigma| - |distance|)."""
    return jax.nn.relu(1 + _abs(sigma) - _abs(cells - position))


def gaussian(position: Array, sigma: Array, cells: Array) -> Array:
    """exp(-distance² / 2(0.27 + |sigma|)²)."""
    return jnp.exp(-0.5 * ((cells - position) / (0.27 + _abs(sigma))) ** 2)


_SPREADS: dict[Version, Callable[..., Array]] = {
    "v0": bilinear,
    "v1": triangle,
    "max": wide_triangle,
    "gauss": gaussian,
}


def spread(position: Array, sigma: Array | None, *, size: int, version: Version) -> Array:
    """Share of an element that each cell of an axis receives, before normalisation.

    position, sigma: any shape (...), in cells from the centre `size // 2`; sigma is None for v0 and v1.
    Returns (..., size).
    """
    cells = jnp.arange(size, dtype=position.dtype).reshape(*(1,) * position.ndim, size)
    centred = position[..., None] + size // 2
    return _SPREADS[version](centred, None if sigma is None else sigma[..., None], cells)


def two_cells(position: Array, *, size: int, version: Version) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The cells left and right of an element on an axis, all that it meets in v0 and v1, and its share of each.

    position: any shape (...), in cells from the centre `size // 2`. Returns (cell, share) twice, each (...), int32 and
    float; what falls off the grid has share 0. Equals `spread`, its derivatives too.
    """
    centred = position + size // 2
    left = jax.lax.stop_gradient(jnp.floor(centred))
    right_share = centred - left
    if version == "v1":
        right_share = jax.nn.relu(right_share)  # of slope 0 at 0, as a triangle has at its top and its feet

    def on_grid(cell: Array, share: Array) -> tuple[Array, Array]:
        inside = (cell >= 0) & (cell < size)
        return jnp.where(inside, cell, 0).astype(jnp.int32), jnp.where(inside, share, 0 * share)

    return on_grid(left, 1 - right_share), on_grid(left + 1, right_share)

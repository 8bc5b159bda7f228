"""Pixels from their neighbours: the linear system of ROAD's imputation, solved on the device.

Every missing pixel is the weighted mean of its neighbours inside the image, w = 1/6 beside it and 1/12 at its corners:
A x = 0 at the missing pixels, (A x)_i = sum_n w_n (x_i - x_n), known pixels given. A is symmetric and positive, so
conjugate gradients solve it; one cycle of multigrid is the preconditioner, without which hundreds of iterations, one
per pixel of a hole's width, would be needed, and float32 would not do. The residual is computed anew from differences
of neighbours, which are exact where the image is smooth, and not carried along.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from dcls_jax.cam.maps import resize

_SPACE = (-2, -1)
_TOLERANCE = 1e-6  # of the range of an image's known values: what the next correction may at most be
_MOST = 100  # iterations; 10 to 15 are taken
_COARSEST = 4  # pixels along the shorter side of the smallest grid


def filled(images: Array, keep: Array) -> Array:
    """Images (N, H, W, C) with the pixels that are not kept, (N, H, W) bool, from those that are; float32.

    Within 1e-5 of the exact solution, relative to the range of the kept values. What an image gets does not depend on
    the others. An image of which nothing is kept becomes 0.
    """
    x, known = jnp.moveaxis(images.astype(jnp.float32), -1, 1), keep[:, None]
    missing = 1 - known.astype(jnp.float32)
    low, high = (
        pick(jnp.where(known, x, end), _SPACE, keepdims=True) for pick, end in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    )
    tolerance = _TOLERANCE * jnp.maximum(high - low, 0)
    mean = jnp.where(known, x, 0).sum(_SPACE, keepdims=True) / jnp.maximum(known.sum(_SPACE, keepdims=True), 1)
    return jnp.moveaxis(_solve(jnp.where(known, x, mean), missing, tolerance), 1, -1)


class _Search(NamedTuple):
    """Images, the direction of their last step, the product of its correction and residual, and which are not done."""

    x: Array
    p: Array
    rz: Array
    active: Array
    iteration: Array


def _solve(x: Array, missing: Array, tolerance: Array) -> Array:
    """Preconditioned conjugate gradients from x (N, C, H, W); missing (N, 1, H, W) is 1 where x is to be found."""
    grids = [missing]
    while min(grids[-1].shape[-2:]) > _COARSEST:
        grids.append(_halved(grids[-1]))

    def improve(state: _Search) -> _Search:
        residual = missing * _inflow(state.x)
        z = _cycle(residual, grids)
        # Images that are done stay as they are, whatever the others need.
        active = state.active & (jnp.abs(z).max(_SPACE, keepdims=True) > tolerance)
        rz = _dot(residual, z)
        p = z + rz / jnp.where(state.rz > 0, state.rz, 1) * state.p
        curvature = _dot(p, _apply(p, missing))
        x = state.x + jnp.where(active, rz / jnp.where(curvature > 0, curvature, 1), 0) * p
        return _Search(x, p, rz, active, state.iteration + 1)

    def goes_on(state: _Search) -> Array:
        return state.active.any() & (state.iteration < _MOST)

    start = _Search(x, jnp.zeros_like(x), jnp.ones_like(tolerance), jnp.ones_like(tolerance, bool), jnp.asarray(0))
    return lax.while_loop(goes_on, improve, start).x


def _dot(a: Array, b: Array) -> Array:
    return (a * b).sum(_SPACE, keepdims=True)


def _padded(x: Array) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)])


def _inflow(x: Array) -> Array:
    """sum_n w_n (x_n - x_i) over neighbours inside the image."""
    (height, width), flow = x.shape[-2:], jnp.zeros_like(x)
    around, inside = _padded(x), _padded(jnp.ones((height, width), x.dtype))
    for i, j in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
        there = slice(i, i + height), slice(j, j + width)
        flow += (1 / 6 if 1 in (i, j) else 1 / 12) * inside[there] * (around[..., *there] - x)
    return flow


def _mean(x: Array) -> Array:
    """sum_n w_n x_n over neighbours: ((1, 2, 1) x (1, 2, 1) - 4) / 12."""
    rows = _padded(x)
    rows = rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * x) / 12


def _apply(x: Array, missing: Array) -> Array:
    """A x of corrections, which are 0 at known pixels."""
    return missing * (_degree(x) * x - _mean(x))


def _degree(x: Array) -> Array:
    """sum_n w_n over neighbours inside: 1 but at the border."""
    return _mean(jnp.ones(x.shape[-2:], x.dtype))


def _halved(missing: Array) -> Array:
    """The mask of a grid of half the size: of 2 x 2 pixels, or what of them is inside, all are missing."""
    height, width = missing.shape[-2:]
    padding = [(0, 0)] * (missing.ndim - 2) + [(0, height % 2), (0, width % 2)]
    rows = jnp.pad(missing, padding, constant_values=1)
    rows = rows[..., ::2, :] * rows[..., 1::2, :]
    return rows[..., ::2] * rows[..., 1::2]


def _cycle(residual: Array, grids: list[Array]) -> Array:
    """One V-cycle: about A^-1 residual, and symmetric. Jacobi's step divides by three what a coarser grid cannot hold.

    The same A stands on all grids, as a grid of half the size has a quarter of the pixels and four times the step.
    """
    missing, *coarser = grids
    degree = _degree(residual)
    z = missing * residual / degree
    if not coarser:
        for _ in range(8):
            z = z + (residual - _apply(z, missing)) / degree
        return z
    rows, columns = (resize(jnp.eye(-(-n // 2)), (n, -(-n // 2))) for n in residual.shape[-2:])
    rest = jnp.einsum("ih,...ij,jw->...hw", rows, residual - _apply(z, missing), columns, precision="highest")
    z_coarse = _cycle(coarser[0] * rest, coarser)
    z = z + missing * jnp.einsum("ih,...hw,jw->...ij", rows, z_coarse, columns, precision="highest")
    return z + (residual - _apply(z, missing)) / degree

"""The dense kernel of a dilated convolution with learnable spacings (arXiv 2112.03740, 2306.00817)."""

import math
from functools import partial, reduce
from itertools import product

import jax
import jax.numpy as jnp
from jax import Array

from dcls_jax.arrays import at_least_float32, promoted
from dcls_jax.interpolation import VERSIONS, Version, has_sigma, spread, two_cells


def grid_axes(version: Version, dims: int) -> tuple[int, ...]:
    """The grid axis along which each row of `positions` moves: P[d] moves along axis grid_axes[d].

    The `dcls` package counts axes from the first in v0 (but 0, 2, 1 in 3-D) and from the last in the other versions.
    """
    if version == "v0":
        return (0, 2, 1) if dims == 3 else tuple(range(dims))
    return tuple(reversed(range(dims)))


def construct_kernel(
    weight: Array,
    positions: Array,
    sigma: Array | None = None,
    *,
    dilated_kernel_size: tuple[int, ...],
    version: Version,
) -> Array:
    """Sum of weighted elements, each spread over the grid cells around its position.

    weight (out, in/groups, count); positions and sigma (dims, out, in/groups, count), in cells from the centre cell
    `size // 2`; sigma for versions "max" and "gauss" only. Returns (out, in/groups, *dilated_kernel_size), in float32
    where the arguments are narrower.
    Every version but v0 divides an element by the sum of its footprint (+ 1e-7), so none of its weight is lost at the
    border. Equals `ConstructKernel1d/2d/3d` of the `dcls` package 0.1.1, but for non-cubic sizes, where the package
    centres a position by another axis' size.

    Raises ValueError where shapes, version and sizes do not fit together.
    """
    _check(weight, positions, sigma, dilated_kernel_size, version)
    weight, positions = weight.astype(at_least_float32(weight)), positions.astype(at_least_float32(positions))
    sigma = None if sigma is None else sigma.astype(at_least_float32(sigma))
    weight, positions, sigma = promoted(weight, positions, sigma)
    return _construct(weight, positions, sigma, sizes=tuple(dilated_kernel_size), version=version)


@partial(jax.jit, static_argnames=("sizes", "version"))  # layers of one shape are traced and compiled once
def _construct(
    weight: Array, positions: Array, sigma: Array | None, *, sizes: tuple[int, ...], version: Version
) -> Array:
    rows = [grid_axes(version, len(sizes)).index(axis) for axis in range(len(sizes))]
    by_axis = [positions[row] for row in rows]
    sigmas = [None if sigma is None else sigma[row] for row in rows]
    contract = partial(_contract, sigmas=sigmas, sizes=sizes, version=version)
    if has_sigma(version) or _sharded(weight) or _sharded(positions):
        return contract(weight, by_axis)
    # A scatter is four to seven times faster on a CPU; TPUs scatter one value after the other. It mixes all kernels, so
    # that kernels which a mesh with explicit axes spreads are not for it.
    scatter = partial(_scatter, sizes=sizes, version=version)
    return jax.lax.platform_dependent(weight, by_axis, cpu=scatter, default=contract)


def _sharded(x: Array) -> bool:
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def _scatter(weight: Array, positions: list[Array], *, sizes: tuple[int, ...], version: Version) -> Array:
    """For v0 and v1: every element adds to the corner cells around its position, two per axis."""
    axes = [two_cells(position, size=size, version=version) for position, size in zip(positions, sizes, strict=True)]
    if version != "v0":
        weight = _normalised(weight, [left + right for (_, left), (_, right) in axes])
    pairs = math.prod(weight.shape[:2])
    kernel_of_element = jnp.arange(pairs, dtype=jnp.int32).reshape(*weight.shape[:2], 1)
    cells, values = [], []
    for corner in product(*axes):
        index, value = kernel_of_element, weight
        for (cell, share), size in zip(corner, sizes, strict=True):
            index, value = index * size + cell, value * share
        cells.append(index)
        values.append(value)
    flat = jnp.zeros(pairs * math.prod(sizes), weight.dtype)
    flat = flat.at[jnp.stack(cells, -1).reshape(-1)].add(jnp.stack(values, -1).reshape(-1), mode="promise_in_bounds")
    return flat.reshape(*weight.shape[:2], *sizes)


def _contract(
    weight: Array, positions: list[Array], *, sigmas: list[Array | None], sizes: tuple[int, ...], version: Version
) -> Array:
    """For every version: the spreads of all elements over each axis, multiplied and summed over the elements."""
    spreads = [
        spread(position, sigma, size=size, version=version)
        for position, sigma, size in zip(positions, sigmas, sizes, strict=True)
    ]
    if version != "v0":
        weight = _normalised(weight, [s.sum(-1) for s in spreads])
    first, *rest = spreads
    weighted = weight[..., None] * first  # out in count size
    match rest:
        case []:
            return weighted.sum(-2)
        case [second]:
            return _sum_of_products("oinh,oinw->oihw", weighted, second)
        case [second, third]:
            # A slice at a time: (count, size, size) per pair of channels would outgrow the kernel itself.
            slices = jax.lax.map(
                lambda plane: _sum_of_products("oinh,oinw->oihw", plane[..., None] * second, third),
                jnp.moveaxis(weighted, -1, 0),
            )
            return jnp.moveaxis(slices, 0, 2)
    raise ValueError(f"kernels have 1, 2 or 3 dimensions, not {len(spreads)}")


def _normalised(weight: Array, footprint_by_axis: list[Array]) -> Array:
    return weight / (reduce(jnp.multiply, footprint_by_axis) + 1e-7)


def _sum_of_products(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)


def _check(
    weight: Array, positions: Array, sigma: Array | None, dilated_kernel_size: tuple[int, ...], version: str
) -> None:
    if version not in VERSIONS:
        raise ValueError(f"version (={version!r}) must be one of {', '.join(VERSIONS)}")
    dims = len(dilated_kernel_size)
    if dims not in (1, 2, 3):
        raise ValueError(f"dilated_kernel_size (={dilated_kernel_size}) must have 1, 2 or 3 entries")
    if weight.ndim != 3:
        raise ValueError(f"weight has shape {weight.shape}, expected (out, in/groups, count)")
    expected = (dims, *weight.shape)
    if positions.shape != expected:
        raise ValueError(f"positions has shape {positions.shape}, expected (dims, *weight.shape) = {expected}")
    if has_sigma(version) != (sigma is not None):
        raise ValueError(f"sigma must be {'given' if has_sigma(version) else 'None'} for version {version!r}")
    if sigma is not None and sigma.shape != expected:
        raise ValueError(f"sigma has shape {sigma.shape}, expected that of positions, {expected}")

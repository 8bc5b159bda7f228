"""Dtypes and ranks that are said, not promoted: so that JAX's strict modes have nothing to complain about."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike


def at_least_float32(x: Array) -> np.dtype:
    """The dtype to sum in: x's own, or float32 for a narrower one."""
    return x.dtype if x.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def along_channels(vector: Array, x: Array) -> Array:
    """vector (C,) to multiply or add to x (..., C), in x's dtype."""
    return vector.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


def promoted(*arrays: Array | None, dtype: DTypeLike | None = None) -> list[Any]:
    """Arrays in one dtype: the given one or, as in Flax's layers, the floating one to which theirs promote."""
    given = [array.dtype for array in arrays if array is not None]
    dtype = jnp.result_type(*given) if dtype is None else dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.promote_types(jnp.float32, dtype)
    return [None if array is None else array.astype(dtype) for array in arrays]

"""Why a record counts, or does not: the status that travels with every score."""

from collections.abc import Mapping
from enum import StrEnum
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


class Status(StrEnum):
    """What became of a record, in the words of tables. Results folders hold their order: new ones go to the end."""

    COUNTED = "counted"
    CONSTANT = "constant map"
    NOT_FINITE = "not finite"
    EMPTY = "empty mask"
    DIFFICULT = "difficult"
    EASY = "not difficult"
    TOO_LARGE = "too large"
    SEVERAL = "several boxes"
    UNREADABLE = "unreadable"
    CONSTANT_HUMAN = "constant human map"

    @property
    def code(self) -> int:
        """Its number in arrays, 0 for what counts."""
        return _CODES[self]


_CODES = {status: code for code, status in enumerate(Status)}


class Scores(NamedTuple):
    """What records reached: values (B, ...) by name, and the code of each record's status (B,), int8.

    Values of records that do not count mean nothing. On the host, of one record, without the leading axis.
    """

    values: Mapping[str, Any]
    status: Any


def map_status(maps: ArrayLike, constant: Status = Status.CONSTANT) -> Array:
    """Of maps (B, *space) the codes (B,): not finite, constant, or counted. constant: what a constant one is called."""
    maps = jnp.asarray(maps)
    space = tuple(range(1, maps.ndim))
    finite, varies = jnp.isfinite(maps).all(space), maps.max(space) > maps.min(space)
    code = jnp.where(varies, Status.COUNTED.code, constant.code)
    return jnp.where(finite, code, Status.NOT_FINITE.code).astype(jnp.int8)


def first_reason(*codes: Array) -> Array:
    """Of several codes of each record the first that is not `COUNTED`."""
    return reduce(lambda first, other: jnp.where(first != Status.COUNTED.code, first, other), codes)


def counted(scores: Scores) -> Scores:
    """With a status for values that are not finite all the same, and NaN for what does not count."""
    values, status = scores
    status = status.copy()
    for value in values.values():
        finite = np.isfinite(value.reshape(len(value), -1)).all(1)
        status[~finite & (status == Status.COUNTED.code)] = Status.NOT_FINITE.code
    counts = status == Status.COUNTED.code
    return Scores({name: _with_nan(value, ~counts) for name, value in values.items()}, status)


def _with_nan(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    if not where.any():
        return values
    values = values.astype(np.result_type(values, np.float32))
    values[where] = np.nan
    return values

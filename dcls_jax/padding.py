"""Sizes, strides and padding: how they may be said, and what they come to."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

from jax import lax

Padding = SupportsIndex | str | Sequence[SupportsIndex | Sequence[SupportsIndex]]


def per_axis(value: SupportsIndex | Sequence[SupportsIndex], dims: int, name: str) -> tuple[int, ...]:
    """A positive whole number for each axis, from one for all or a sequence.

    Raises ValueError that calls the value by its name.
    """
    try:
        values = (
            tuple(operator.index(v) for v in value) if isinstance(value, Sequence) else (operator.index(value),) * dims
        )
    except TypeError:
        values = ()
    if len(values) != dims or min(values) < 1:
        raise ValueError(f"{name} (={value!r}) must be a positive number, or {dims} of them")
    return values


def checked_padding(padding: Padding, dims: int) -> str | tuple[tuple[int, int], ...]:
    """Padding as "SAME", "VALID" or (low, high) pairs per axis, from those, a number, or a number or pair per axis.

    Raises ValueError for a padding that is none of these, or negative.
    """
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"padding (={padding!r}) must be numbers, 'SAME' or 'VALID'")
        return padding.upper()
    try:
        each: Sequence[Any] = padding if isinstance(padding, Sequence) else (padding,) * dims
        pairs = tuple(tuple(operator.index(q) for q in (p if isinstance(p, Sequence) else (p, p))) for p in each)
    except TypeError:
        pairs = ()
    if len(pairs) != dims or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise ValueError(
            f"padding (={padding!r}) must hold one number or (low, high) pair per axis ({dims}), none negative"
        )
    return tuple((low, high) for low, high in pairs)


def explicit_padding(
    padding: Padding, *, size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding as (low, high) pairs per axis, from whatever `checked_padding` takes; raises as it does."""
    pads = checked_padding(padding, len(size))
    if isinstance(pads, str):
        pads = tuple((low, high) for low, high in lax.padtype_to_pads(size, kernel_size, stride, pads))
    return pads


def output_size(
    size: Sequence[int], kernel_size: Sequence[int], pads: Sequence[tuple[int, int]], stride: Sequence[int]
) -> tuple[int, ...]:
    """What a convolution makes of `size`, per axis."""
    axes = zip(size, kernel_size, pads, stride, strict=True)
    return tuple((length + sum(pair) - k) // step + 1 for length, k, pair, step in axes)

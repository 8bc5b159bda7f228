"""How padding may be said, and what it comes to."""

from collections.abc import Sequence

from jax import lax

Padding = int | str | Sequence[int | tuple[int, int]]


def explicit_padding(
    padding: Padding, *, size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding as (low, high) pairs per axis, from a number, "SAME", "VALID", or one number or pair per axis.

    Raises ValueError for a padding that is none of these, or negative.
    """
    dims = len(size)
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"padding (={padding!r}) must be numbers, 'SAME' or 'VALID'")
        return tuple((low, high) for low, high in lax.padtype_to_pads(size, kernel_size, stride, padding.upper()))
    if isinstance(padding, int):
        padding = (padding,) * dims
    pairs = tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding)
    if len(pairs) != dims or min(low for pair in pairs for low in pair) < 0:
        raise ValueError(
            f"padding (={padding}) must hold one number or (low, high) pair per axis ({dims}), none negative"
        )
    return pairs

"""Polygons and run lengths as masks, to the pixel as pycocotools draws them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dcls_jax.eval.boxes import Size

_FINE = 5  # points of a line to a pixel, each way


def polygon_mask(polygon: ArrayLike, size: Size) -> np.ndarray:
    """A polygon x0, y0, x1, y1, ... in pixels, whose centres are at half, as a mask of size (H, W): bool.

    Its lines are drawn on a grid five times finer. Where they cross the middle of a column of pixels, inside and
    outside change places from that height down. Raises ValueError for other than pairs of finite numbers.
    """
    corners = np.asarray(polygon, float)
    if corners.ndim != 1 or corners.size % 2 or not corners.size or not np.isfinite(corners).all():
        raise ValueError(f"a polygon of shape {corners.shape}, expected pairs of finite numbers")
    x, y = _line_points(_whole(_FINE * corners.reshape(-1, 2) + 0.5))
    (height, width), step = size, np.flatnonzero(np.diff(x))
    column = (np.minimum(x[step], x[step + 1]) + 0.5) / _FINE - 0.5
    row = (np.minimum(y[step], y[step + 1]) + 0.5) / _FINE - 0.5
    middle = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    changes = column[middle].astype(int) * height + np.ceil(row[middle].clip(0, height)).astype(int)
    inside = np.bincount(changes, minlength=height * width + 1)[: height * width].cumsum() % 2 == 1
    return inside.reshape(width, height).T


def _line_points(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points (n,), (n,) of the lines from corner to corner (k, 2), all whole numbers, both ends of each."""
    start, stop = corners, np.roll(corners, -1, 0)
    along = np.abs(stop - start).argmax(1)  # x where a line is as flat as it is steep
    forth = np.take_along_axis(start <= stop, along[:, None], 1)
    low, high = np.where(forth, start, stop), np.where(forth, stop, start)  # a line back is the line forth, reversed
    length = np.abs(stop - start).max(1)
    line = np.repeat(np.arange(len(corners)), length + 1)
    step = np.arange(len(line)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    step = np.where(forth[line, 0], step, length[line] - step)
    slope = (high - low) / np.maximum(length, 1)[:, None]
    points = np.where(
        np.arange(2) == along[line, None],
        low[line] + step[:, None],
        _whole(low[line] + slope[line] * step[:, None] + 0.5),
    )
    return points[:, 0], points[:, 1]


def _whole(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.int64)  # towards zero, as C does


def run_length_mask(counts: str | bytes | Sequence[int], size: Size) -> np.ndarray:
    """Run lengths, of outside and inside by turns down each column, as a mask of size (H, W): bool.

    counts: numbers, or pycocotools' string of them. Raises ValueError where they do not add up to the size.
    """
    lengths = _uncompressed(counts) if isinstance(counts, str | bytes) else [int(count) for count in counts]
    height, width = size
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"run lengths add up to {sum(lengths)}, expected {height} x {width}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _uncompressed(text: str | bytes) -> list[int]:
    """Numbers of groups of 5 bits, least first, each a character from 48 on; bit 5 says that more follow.

    The last group's bit 4 is the sign. From the fourth on, a number is the difference to the one two before.
    """
    numbers: list[int] = []
    number = shift = 0
    for character in text if isinstance(text, bytes) else text.encode():
        group = character - 48
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            signed = number - (1 << shift) if group & 16 else number
            numbers.append(signed + numbers[-2] if len(numbers) > 2 else signed)
            number = shift = 0
    return numbers

"""One map over one picture: in colour, in two colours for its two signs, or as lines."""

import difflib
from collections.abc import Sequence
from numbers import Integral

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Colour = tuple[int, int, int]

# Lightness grows evenly with the value, so that no step looks like an edge, as "jet" has them; and unlike in "viridis",
# "inferno" and "magma" neither end is green, black or white, which photographs have plenty of.
COLORMAP = "plasma"


def overlay(image: ArrayLike, heatmap: ArrayLike, *, alpha: float = 0.75, colormap: str = COLORMAP) -> np.ndarray:
    """A map in colour over a picture, the more opaque the higher its value: (H, W, 3) uint8.

    image (H, W, 3), or grey (H, W) or (H, W, 1): uint8, or floats in [0, 1].
    heatmap (H, W): clipped to [0, 1]; what is not finite stays uncoloured, as 0 does.
    alpha: opacity where the map is 1, in [0, 1]. colormap: a name of matplotlib's.
    Raises ValueError for another image, a heatmap of another size, and options outside their range.
    """
    picture, values = _fitting(image, heatmap, "heatmap")
    check_colours(alpha, colormap)
    values = np.nan_to_num(values).clip(0, 1)
    return _blend(picture, _colours(values, colormap), alpha * values)


def overlay_signed(image: ArrayLike, values: ArrayLike, *, alpha: float = 0.9, colormap: str = "bwr") -> np.ndarray:
    """A signed map over a picture in grey, what speaks for red, what speaks against blue: (H, W, 3) uint8.

    image as for `overlay`. values (H, W): the largest magnitude has opacity alpha, 0 and what is not finite none.
    colormap: one of matplotlib's, whose ends are the colours of the two signs. Raises ValueError as `overlay` does.
    """
    picture, values = _fitting(image, values, "values")
    check_colours(alpha, colormap)
    values = np.nan_to_num(values)
    share = values / (np.abs(values).max() or 1)
    # The ends alone: the paler colours between, over the picture, would whiten it where the map is near 0.
    return _blend(picture.mean(-1, keepdims=True), _colours((share > 0) * 1.0, colormap), alpha * np.abs(share))


def contour(
    image: ArrayLike,
    heatmap: ArrayLike,
    *,
    levels: Sequence[float] = (0.5, 0.8),
    colour: Colour | Sequence[Colour] | None = None,
    width: int = 2,
) -> np.ndarray:
    """Lines around where a map reaches each level: (H, W, 3) uint8.

    image as for `overlay`. heatmap (H, W): what is not finite is neither inside nor outside.
    levels: in [0, 1]. colour: of all lines, or one for each level, RGB from 0 to 255; from yellow (lowest level) to red
    unless given. width: of the lines in pixels, inside the region.
    Raises ValueError as `overlay` does.
    """
    picture, values = _fitting(image, heatmap, "heatmap")
    _check_lines(levels, width, min(values.shape))
    absent = np.isnan(values)
    picture = picture.copy()
    for level, line_colour in sorted(zip(levels, _line_colours(levels, colour), strict=True), key=lambda line: line[0]):
        region = (values >= level) | absent
        core = region
        for _ in range(width):
            core = _eroded(core)
        picture[region & ~core & ~absent] = line_colour
    return picture


def as_picture(image: ArrayLike, name: str = "image") -> np.ndarray:
    """A picture as (H, W, 3) uint8, of one (H, W, 3), (H, W, 1) or (H, W), uint8 or floats in [0, 1].

    Raises ValueError, which calls it `name`, for any other.
    """
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)) or not pixels.size:
        raise ValueError(f"{name} has shape {pixels.shape}, expected (H, W, 3), (H, W, 1) or (H, W)")
    if jnp.issubdtype(pixels.dtype, jnp.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{name} has floats from {low:.4g} to {high:.4g}, expected uint8, or floats in [0, 1]")
        pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{name} has dtype {pixels.dtype}, expected uint8, or floats in [0, 1]")
    return np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))


def check_colours(alpha: float, colormap: str) -> None:
    """Raise ValueError for an opacity outside [0, 1], or a colormap that is not one of matplotlib's."""
    from matplotlib import colormaps

    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha (={alpha}) must be in [0, 1]")
    if colormap not in colormaps:
        nearest = difflib.get_close_matches(str(colormap), colormaps, n=3, cutoff=0)
        raise ValueError(f"colormap (={colormap!r}) is not one of matplotlib's; the nearest are {', '.join(nearest)}")


def _check_lines(levels: Sequence[float], width: int, side: int) -> None:
    if not len(levels) or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"levels (={levels}) must be in [0, 1], one at least")
    if not isinstance(width, Integral) or not 1 <= width <= side:
        raise ValueError(f"width (={width}) must be a whole number of pixels, from 1 to the picture's side, {side}")


def _line_colours(levels: Sequence[float], colour: Colour | Sequence[Colour] | None) -> np.ndarray:
    """A colour for each level: (levels, 3) uint8."""
    if colour is None:
        ranks = np.argsort(np.argsort(levels)) / max(len(levels) - 1, 1)
        return np.rint(_colours(ranks, "autumn_r")).astype(np.uint8)
    colours = np.asarray(colour)
    fits = colours.shape in ((3,), (len(levels), 3)) and np.issubdtype(colours.dtype, np.integer)
    if not fits or colours.min() < 0 or colours.max() > 255:
        raise ValueError(f"colour (={colour}) must be three whole numbers from 0 to 255, or such three for each level")
    return np.broadcast_to(colours, (len(levels), 3))


def _fitting(image: ArrayLike, values: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The picture, and the map (H, W) float64 with NaN for all that is not finite."""
    picture, numbers = as_picture(image), np.asarray(values, np.float64)
    if numbers.ndim != 2:
        raise ValueError(f"{name} has shape {numbers.shape}, expected (H, W)")
    if picture.shape[:2] != numbers.shape:
        raise ValueError(f"image has shape {np.shape(image)}, expected the size of {name}, {numbers.shape}")
    return picture, np.where(np.isfinite(numbers), numbers, np.nan)


def _colours(values: np.ndarray, colormap: str) -> np.ndarray:
    """Values in [0, 1] -> colours (..., 3) in [0, 255]."""
    from matplotlib import colormaps

    return colormaps[colormap](values)[..., :3] * 255


def _blend(below: np.ndarray, above: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return np.rint(below + opacity[..., None] * (above - below)).astype(np.uint8)


def _eroded(region: np.ndarray) -> np.ndarray:
    """Without the pixels that touch the outside; the picture's edge is no outside."""
    padded = np.pad(region, 1, mode="edge")
    return region & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]

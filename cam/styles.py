"""Maps on pictures, images x methods, in one of three styles, with a bar that says what their colours mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dcls_jax.cam.grids import Bar, Grid
from dcls_jax.cam.maps import resize
from dcls_jax.cam.pictures import as_picture, check_colours, contour, overlay, overlay_signed

Style = Literal["heatmap", "signed", "contour"]


def show_maps(
    images: Sequence[ArrayLike],
    maps: Mapping[str, ArrayLike] | ArrayLike,
    *,
    style: Style = "heatmap",
    alpha: float | None = None,
    colormap: str | None = None,
    row_titles: Sequence[str] = (),
) -> Grid:
    """Images x methods: pictures as `overlay` takes them, and by column title raw maps (B, h, w), resized to them.

    maps: one array without a title is called "map".
    style: "heatmap", positive parts as shares of each map's maximum; "contour", lines around half and 80 % of that;
    "signed", both signs as shares of each map's largest magnitude. Under a map that has nothing to show, or values that
    are not finite, stands so; those are left uncoloured, and the others drawn as if they were not there.
    alpha, colormap: of `overlay` or `overlay_signed`, whose own they are unless given.
    Raises ValueError for another style, options that it does not have or outside their range, no images, and images or
    maps that do not fit.
    """
    check_style(style, alpha, colormap)
    pictures = [as_picture(image, f"images[{i}]") for i, image in enumerate(images)]
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"images have sizes {sorted(sizes)}, expected one image at least, and all of one size")
    (size,) = sizes
    look, signed = _LOOKS[style], style == "signed"
    options = {key: value for key, value in (("alpha", alpha), ("colormap", colormap)) if value is not None}
    draw = partial(look.draw, **options)
    columns, notes = [pictures], [[""] * len(pictures)]
    named = maps if isinstance(maps, Mapping) else {"map": maps}
    for name, maps_of in named.items():
        raw = np.asarray(maps_of, np.float64)
        if raw.ndim != 3 or len(raw) != len(pictures) or not raw.size:
            raise ValueError(f"maps[{name!r}] have shape {raw.shape}, expected ({len(pictures)}, h, w)")
        shown = _shares(raw, size, signed)
        columns.append([draw(picture, values) for picture, values in zip(pictures, shown, strict=True)])
        notes.append([_note(values, signed) for values in raw])
    rows = [*zip(*columns, strict=True)]
    return Grid(rows, ["image", *named], row_titles, [*zip(*notes, strict=True)], _bar(look, draw))


@dataclass(frozen=True)
class _Look:
    """How a style draws values from `lowest` to 1, and what its bar says."""

    draw: Callable[..., np.ndarray]
    lowest: float
    ticks: Mapping[float, str]
    label: str


_LOOKS: dict[str, _Look] = {
    "heatmap": _Look(overlay, 0, {0: "0 %", 0.5: "50 %", 1: "100 %"}, "of each map's maximum"),
    "signed": _Look(overlay_signed, -1, {0: "-100 %", 0.5: "0 %", 1: "100 %"}, "of each map's largest magnitude"),
    "contour": _Look(contour, 0, {0.5: "50 %", 0.8: "80 %"}, "of each map's maximum"),
}


def check_style(style: str, alpha: float | None = None, colormap: str | None = None) -> None:
    """Raise ValueError for a style, or options of it, that `show_maps` does not take; None: not given."""
    if style not in _LOOKS:
        raise ValueError(f"style (={style!r}) must be one of {', '.join(_LOOKS)}")
    if style == "contour":
        for name, value in (("alpha", alpha), ("colormap", colormap)):
            if value is not None:
                raise ValueError(f"{name} (={value!r}) is for the styles heatmap and signed, and not for contour")
    check_colours(0 if alpha is None else alpha, "gray" if colormap is None else colormap)


def _bar(look: _Look, draw: Callable[..., np.ndarray]) -> Bar:
    """What the style draws of all its values, over mid-grey."""
    values = np.broadcast_to(np.linspace(look.lowest, 1, 256)[:, None], (256, 16))
    return Bar(draw(np.full(values.shape, 128, np.uint8), values), look.ticks, look.label)


def _shares(raw: np.ndarray, size: tuple[int, int], signed: bool) -> np.ndarray:
    """Maps (B, h, w) as shares of their largest values, resized: (B, *size), NaN where the nearest is not finite."""
    finite = np.isfinite(raw)
    values = np.where(finite, raw, 0)
    if not signed:
        values = values.clip(0)
    largest = np.abs(values).max((1, 2), keepdims=True)
    constant = np.array([_constant(map_of) for map_of in raw])[:, None, None]
    values = np.where(constant, 0, values / np.where(largest > 0, largest, 1))
    # Bilinear among the finite neighbours alone: their weighted sum over the sum of their weights.
    weighed, weights = (np.asarray(resize(jnp.asarray(it, jnp.float32), size)) for it in (values, finite))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, raw.shape[1:], strict=True)
    )
    nearest = finite[:, rows[:, None], columns]
    return np.divide(weighed, weights, out=np.full_like(weighed, np.nan), where=nearest)


def _constant(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return not finite.size or finite.min() == finite.max()


def _note(values: np.ndarray, signed: bool) -> str:
    if not np.isfinite(values).all():
        return "not finite"
    if _constant(values):
        return "constant"
    return "" if signed or (values > 0).any() else "nothing positive"

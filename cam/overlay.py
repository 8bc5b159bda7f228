"""Pictures: maps on images, and grids of them, as a PNG file or in a notebook."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from jax.typing import ArrayLike

from dcls_jax.cam.maps import dead_maps, postprocess

Style = Literal["heatmap", "signed", "contour"]


def overlay(image: np.ndarray, heatmap: np.ndarray, *, alpha: float = 0.5, colormap: str = "jet") -> np.ndarray:
    """A map in colour over a picture: image (H, W, 3) uint8, heatmap (H, W) in [0, 1] -> (H, W, 3) uint8.

    alpha: opacity of the map. Raises ValueError where the sizes differ.
    """
    image, heatmap = _fitting(image, heatmap)
    return _blend(image, _colours(np.clip(heatmap, 0, 1), colormap), alpha)


def overlay_signed(image: np.ndarray, values: np.ndarray, *, alpha: float = 0.9, colormap: str = "bwr") -> np.ndarray:
    """A signed map over a picture in grey, what speaks for red, what speaks against blue: (H, W, 3) uint8.

    image (H, W, 3) uint8; values (H, W): the largest magnitude has full colour and opacity alpha, 0 none.
    Raises ValueError where the sizes differ.
    """
    image, values = _fitting(image, values)
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    share = values / (np.abs(values).max() or 1)
    return _blend(grey, _colours(0.5 + share / 2, colormap), alpha * np.abs(share)[..., None])


def contour(
    image: np.ndarray,
    heatmap: np.ndarray,
    *,
    levels: Sequence[float] = (0.5, 0.8),
    colour: tuple[int, int, int] = (255, 255, 0),
    width: int = 2,
) -> np.ndarray:
    """Lines around where a map reaches each level: image (H, W, 3) uint8, heatmap (H, W) in [0, 1] -> (H, W, 3) uint8.

    width: of the lines in pixels, inside the region. Raises ValueError where the sizes differ.
    """
    image, heatmap = _fitting(image, heatmap)
    lines = np.zeros(heatmap.shape, bool)
    for level in levels:
        region = heatmap >= level
        core = region
        for _ in range(width):
            core = _eroded(core)
        lines |= region & ~core
    return np.where(lines[..., None], np.asarray(colour, np.uint8), image)


@dataclass(frozen=True)
class Grid:
    """Pictures (H, W, 3) uint8 side by side, each column and row under its title; a notebook shows it by itself.

    notes: a line under each picture. bar: a colour map's name, what its two ends mean, for a bar at the side.
    """

    rows: Sequence[Sequence[np.ndarray]]
    column_titles: Sequence[str]
    row_titles: Sequence[str] = ()
    notes: Sequence[Sequence[str]] = ()
    bar: tuple[str, str, str] | None = None

    def png(self) -> bytes:
        """The grid as a PNG file's content."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.figure import Figure

        columns = len(self.column_titles)
        figure = Figure(figsize=(1.8 * columns, 1.8 * len(self.rows) + 0.3), dpi=100, layout="constrained")
        axes = figure.subplots(len(self.rows), columns, squeeze=False)
        for i, row in enumerate(self.rows):
            for j, picture in enumerate(row):
                axes[i, j].imshow(picture)
                axes[i, j].set(xticks=[], yticks=[])
                axes[i, j].spines[:].set_visible(False)
                if self.notes and self.notes[i][j]:
                    axes[i, j].set_xlabel(self.notes[i][j], fontsize=7)
            if self.row_titles:
                axes[i, 0].set_ylabel(self.row_titles[i], fontsize=8)
        for axis, title in zip(axes[0], self.column_titles, strict=True):
            axis.set_title(title, fontsize=9)
        if self.bar:
            colormap, low, high = self.bar
            bar = figure.colorbar(ScalarMappable(cmap=colormap), ax=axes, shrink=min(1, 2 / len(self.rows)), aspect=25)
            bar.set_ticks([0, 1], labels=[low, high], fontsize=7)
        file = BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the grid as a PNG, which appears under its name only when complete."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(self.png())
        os.replace(partial, target)

    def _repr_png_(self) -> bytes:
        return self.png()


def save_grid(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[np.ndarray]],
    *,
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
) -> None:
    """Write pictures (H, W, 3) uint8 side by side as a PNG, each column and row under its title."""
    Grid(rows, column_titles, row_titles).save(path)


def show_maps(
    images: Sequence[np.ndarray],
    maps: Mapping[str, ArrayLike],
    *,
    style: Style = "heatmap",
    row_titles: Sequence[str] = (),
) -> Grid:
    """Images x methods: pictures (H, W, 3) uint8, and by column title raw maps (B, h, w), resized to the pictures.

    style: "heatmap", positive parts from 0 to each map's maximum; "contour", lines around half and 80 % of that;
    "signed", both signs up to each map's largest magnitude. Under a map that has nothing to show stands why.
    Raises ValueError for another style, no images, and numbers of maps or sizes of images that do not fit.
    """
    if style not in _STYLES:
        raise ValueError(f"style (={style!r}) must be one of {', '.join(_STYLES)}")
    sizes = {np.shape(image) for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images have shapes {sorted(sizes)}, expected one image at least, and all of one size")
    height, width, _ = sizes.pop()
    draw, bar = _STYLES[style]
    signed = style == "signed"
    columns, notes = [list(images)], [[""] * len(images)]
    for name, raw in maps.items():
        if len(np.shape(raw)) != 3 or len(np.asarray(raw)) != len(images):
            raise ValueError(f"maps[{name!r}] have shape {np.shape(raw)}, expected ({len(images)}, h, w)")
        shown = np.asarray(postprocess(raw, relu=not signed, normalise=not signed, size=(height, width)))
        columns.append([draw(image, values) for image, values in zip(images, shown, strict=True)])
        notes.append([_note(values, signed) for values in np.asarray(raw)])
    rows = [*zip(*columns, strict=True)]
    return Grid(rows, ["image", *maps], row_titles, [*zip(*notes, strict=True)], bar)


_STYLES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], tuple[str, str, str] | None]] = {
    "heatmap": (overlay, ("jet", "0", "max")),
    "signed": (overlay_signed, ("bwr", "-max", "max")),
    "contour": (contour, None),
}


def _note(values: np.ndarray, signed: bool) -> str:
    if not np.isfinite(values).all():
        return "not finite"
    if dead_maps(values):
        return "constant"
    return "" if signed or (values > 0).any() else "nothing positive"


def _fitting(image: np.ndarray, heatmap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, heatmap = np.asarray(image), np.asarray(heatmap, np.float32)
    if image.shape != (*heatmap.shape, 3):
        raise ValueError(f"image has shape {image.shape}, expected that of heatmap, and 3: {(*heatmap.shape, 3)}")
    return image, heatmap


def _colours(values: np.ndarray, colormap: str) -> np.ndarray:
    """Values (H, W) in [0, 1] -> colours (H, W, 3) in [0, 255]."""
    from matplotlib import colormaps

    return colormaps[colormap](values)[..., :3] * 255


def _blend(below: np.ndarray, above: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
    return np.rint((1 - alpha) * below + alpha * above).astype(np.uint8)


def _eroded(region: np.ndarray) -> np.ndarray:
    """Without the pixels that touch the outside; the picture's edge is no outside."""
    padded = np.pad(region, 1, mode="edge")
    return region & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]

"""Pictures: maps on images, and grids of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def overlay(image: np.ndarray, heatmap: np.ndarray, *, alpha: float = 0.5, colormap: str = "jet") -> np.ndarray:
    """A map in colour over a picture: image (H, W, 3) uint8, heatmap (H, W) in [0, 1] -> (H, W, 3) uint8.

    alpha: opacity of the map. Raises ValueError where the sizes differ.
    """
    from matplotlib import colormaps

    image, heatmap = np.asarray(image), np.asarray(heatmap, np.float32)
    if image.shape != (*heatmap.shape, 3):
        raise ValueError(f"image has shape {image.shape}, expected that of heatmap, and 3: {(*heatmap.shape, 3)}")
    colours = colormaps[colormap](np.clip(heatmap, 0, 1))[..., :3] * 255
    return np.rint((1 - alpha) * image + alpha * colours).astype(np.uint8)


def save_grid(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[np.ndarray]],
    *,
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
) -> None:
    """Write pictures (H, W, 3) uint8 side by side as a PNG, each column and row under its title."""
    from matplotlib.figure import Figure

    columns = len(column_titles)
    figure = Figure(figsize=(1.8 * columns, 1.8 * len(rows) + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            axes[i, j].imshow(picture)
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].spines[:].set_visible(False)
        if row_titles:
            axes[i, 0].set_ylabel(row_titles[i], fontsize=8)
    for axis, title in zip(axes[0], column_titles, strict=True):
        axis.set_title(title, fontsize=9)
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    figure.savefig(partial, format="png")
    os.replace(partial, target)

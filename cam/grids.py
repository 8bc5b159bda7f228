"""Pictures side by side under their titles, as a file or in a notebook."""

import os
import warnings
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dcls_jax.cam.pictures import as_picture
from dcls_jax.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg", "jpg", "jpeg")

# Pillow's options: a fourth of the time of its own, and files of the same size.
QUICK: dict[str, Any] = {"format": "PNG", "compress_level": 1, "compress_type": zlib.Z_RLE}

PANEL = 2.0  # inches of a panel's longer side: a grid of three columns is as wide as a page's text
SHARP = 400  # pixels of a panel's longer side, at least; a small picture's pixels become squares of a whole number

# Points, of which an inch has 72.
_TITLE, _SMALL, _LEADING, _GAP = 9.0, 7.5, 1.25, 4.0
_BAR, _BAR_GAP, _BAR_ROWS = 9.0, 7.0, 3


@dataclass(frozen=True)
class Bar:
    """What colours mean: a strip (N, M, 3) uint8 that rises from the lowest value, labels at heights from 0 to 1."""

    strip: np.ndarray
    ticks: Mapping[float, str]
    label: str = ""


@dataclass(frozen=True)
class Grid:
    """Pictures side by side, each column and row under its title; a notebook shows it by itself.

    rows: pictures as `overlay` takes them; each of their pixels becomes a square of one pixel at least.
    notes: a line under each picture. bar: what the colours mean, at the side. Titles and notes too long for their place
    are shortened. Raises ValueError for other pictures, and for numbers of pictures, titles or notes that do not fit.
    """

    rows: Sequence[Sequence[np.ndarray]]
    column_titles: Sequence[str]
    row_titles: Sequence[str] = ()
    notes: Sequence[Sequence[str]] = ()
    bar: Bar | None = None

    def __post_init__(self) -> None:
        rows, columns = len(self.rows), len(self.column_titles)
        if not rows or not columns or any(len(row) != columns for row in self.rows):
            held = [len(row) for row in self.rows]
            raise ValueError(
                f"rows hold {held} pictures, expected a row at least, each as long as column_titles, {columns}"
            )
        if len(self.row_titles) not in (0, rows):
            raise ValueError(f"row_titles are {len(self.row_titles)}, expected none or one for each of {rows} rows")
        if self.notes and [len(row) for row in self.notes] != [columns] * rows:
            raise ValueError(
                f"notes are {[len(row) for row in self.notes]} in a row, expected {columns} in each of {rows}"
            )
        for i, row in enumerate(self.rows):
            for j, picture in enumerate(row):
                as_picture(picture, f"rows[{i}][{j}]")

    def png(self) -> bytes:
        """The grid as a PNG file's content."""
        return self._file("png")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the grid in the format that the suffix names; it appears under its name only when complete.

        Raises ValueError for another suffix than .png, .pdf, .svg, .jpg and .jpeg, and OSError, which names the path.
        """
        target = Path(path)
        kind = target.suffix[1:].lower()
        if kind not in FORMATS:
            raise ValueError(f"path (={str(path)!r}) must end in one of {', '.join('.' + known for known in FORMATS)}")
        write_bytes(target, self._file(kind))

    def _repr_png_(self) -> bytes:
        return self.png()

    def _file(self, kind: str) -> bytes:
        file = BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
            canvas = _drawn(self)
            if kind in ("pdf", "svg"):
                canvas.vectors().savefig(file, format=kind, dpi=canvas.dpi)
            else:
                options = QUICK if kind == "png" else {"format": "JPEG", "quality": 95}
                canvas.pixels().save(file, dpi=(canvas.dpi, canvas.dpi), **options)
        return file.getvalue()


@dataclass(frozen=True)
class _Panel:
    """A picture and its place on a canvas, in pixels."""

    picture: np.ndarray
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class _Canvas:
    """Pictures and texts on width x height pixels, where places are pixels from the upper left corner."""

    width: int
    height: int
    dpi: float
    panels: list[_Panel] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)  # arguments of matplotlib's

    def write(self, x: float, y: float, text: str, size: float, room: float, **how: Any) -> None:
        """Write lines, each shortened to `room` pixels; `how` are properties of matplotlib's text."""
        lines = "\n".join(_fitted(line, room * 72 / self.dpi, size) for line in text.split("\n"))
        place = {"x": x / self.width, "y": 1 - y / self.height}
        self.texts.append(place | {"s": lines, "fontsize": size, "parse_math": False} | how)

    def show(self, picture: np.ndarray, x: int, y: int, width: int, height: int) -> None:
        self.panels.append(_Panel(picture, x, y, width, height))

    def pixels(self) -> Image.Image:
        """All of it as a picture, into which Pillow puts others twenty times faster than matplotlib's axes."""
        from matplotlib.backends.backend_agg import RendererAgg

        renderer, figure = RendererAgg(self.width, self.height, self.dpi), self._written()
        figure.draw(renderer)
        for text in [*figure.texts]:
            text.remove()  # else it keeps the renderer's pixels until Python looks for circles of references
        page = Image.fromarray(np.asarray(renderer.buffer_rgba())).convert("RGB")
        for it in self.panels:
            picture = Image.fromarray(np.ascontiguousarray(it.picture))
            page.paste(picture.resize((it.width, it.height), Image.Resampling.NEAREST), (it.x, it.y))
        return page

    def vectors(self) -> "Figure":
        """All of it as a figure, whose pictures have no more pixels than they had."""
        figure = self._written()
        for it in self.panels:
            place = it.x / self.width, 1 - (it.y + it.height) / self.height
            axes = figure.add_axes((*place, it.width / self.width, it.height / self.height))
            axes.imshow(it.picture, interpolation="none", aspect="auto")
            axes.set_axis_off()
        return figure

    def _written(self) -> "Figure":
        """The texts as a figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width / self.dpi, self.height / self.dpi), dpi=self.dpi)
        for text in self.texts:
            figure.text(**text)
        return figure


def _drawn(grid: Grid) -> _Canvas:
    """The grid laid out in whole pixels, so that those of pictures stay sharp."""
    pictures = [[as_picture(picture) for picture in row] for row in grid.rows]
    sizes = np.array([picture.shape[:2] for row in pictures for picture in row])
    scale = int(-(-SHARP // sizes.max()))
    height, width = (scale * int(side) for side in sizes.max(0))
    dpi = max(height, width) / PANEL

    def pixels(points: float) -> int:
        return round(points * dpi / 72)

    gap, note = pixels(_GAP), pixels(_SMALL * _LEADING) if any(map(any, grid.notes)) else 0
    left = gap + pixels(_SMALL * _LEADING * _lines(grid.row_titles))
    top = gap + pixels(_TITLE * _LEADING * _lines(grid.column_titles))
    right, bottom = left + len(pictures[0]) * (width + gap), top + len(pictures) * (height + note + gap)
    bar = pixels(_BAR_GAP + _BAR + _GAP + _ticks_width(grid.bar) + _SMALL * _LEADING) if grid.bar else 0
    canvas = _Canvas(right + bar, bottom, dpi)
    for j, title in enumerate(grid.column_titles):
        x = left + j * (width + gap)
        canvas.write(x + width / 2, top - gap / 2, title, _TITLE, width, ha="center", va="bottom")
        for i, row in enumerate(pictures):
            y = top + i * (height + note + gap)
            times = min(height // row[j].shape[0], width // row[j].shape[1])
            h, w = (times * side for side in row[j].shape[:2])
            canvas.show(row[j], x + (width - w) // 2, y + (height - h) // 2, w, h)
            if note:
                canvas.write(
                    x + width / 2, y + height + gap / 2, grid.notes[i][j], _SMALL, width, ha="center", va="top"
                )
    upwards = {"ha": "right", "va": "center", "rotation": 90, "multialignment": "center"}
    for i, title in enumerate(grid.row_titles):
        middle = top + i * (height + note + gap) + height / 2
        canvas.write(left - gap / 2, middle, title, _SMALL, height - gap, **upwards)
    if grid.bar:
        tall = min(len(pictures), _BAR_ROWS) * (height + note + gap) - note - gap
        x, wide = right + pixels(_BAR_GAP) - gap, pixels(_BAR)
        canvas.show(grid.bar.strip[::-1], x, top, wide, tall)
        for place, text in grid.bar.ticks.items():
            canvas.write(x + wide + gap, top + (1 - place) * tall, text, _SMALL, width, ha="left", va="center")
        canvas.write(canvas.width - gap / 2, top + tall / 2, grid.bar.label, _SMALL, tall, **upwards)
    return canvas


def _ticks_width(bar: Bar) -> float:
    return max((_width(text, _SMALL) for text in bar.ticks.values()), default=0)


def _lines(titles: Sequence[str]) -> int:
    return max((title.count("\n") + 1 for title in titles), default=0)


def _fitted(text: str, points: float, size: float) -> str:
    """A line without control characters, its middle left out where it would be wider than `points`."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    most = min(len(text), 200)  # letters that any line could hold
    if most == len(text) and _width(text, size) <= points:
        return text

    def without_middle(kept: int) -> str:
        return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"

    return without_middle(bisect_right(range(1, most), points, key=lambda kept: _width(without_middle(kept), size)))


def _width(line: str, size: float) -> float:
    """Of a line in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(line, FontProperties(size=size), ismath=False)[0]


def save_grid(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[np.ndarray]],
    *,
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
) -> None:
    """Write pictures side by side, each column and row under its title: `Grid.save`."""
    Grid(rows, column_titles, row_titles).save(path)

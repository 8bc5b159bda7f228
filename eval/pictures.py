"""Maps of a user's own pictures: a grid, each map on its picture, the raw maps, and a manifest."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from dcls_jax.cam import METHODS, DeadMapWarning, Grid, eigen_smooth, explain_all, options_of, show_maps
from dcls_jax.cam.maps import Combine
from dcls_jax.cam.styles import Style, check_style
from dcls_jax.eval.results import write_file, write_json
from dcls_jax.models import Backbone, imagenet_classes, preprocess
from dcls_jax.models.transform import upright

PAGE = 20  # rows of a grid


def open_picture(path: Path) -> Image.Image:
    """A picture as RGB, upright. Raises ValueError naming a file that is none."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return upright(picture)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error


def explain_pictures(
    model: Backbone,
    paths: Sequence[Path],
    out: Path,
    *,
    methods: Sequence[str],
    layers: Sequence[str] = (),
    combine: Combine | None = None,
    target: int | None = None,
    top_k: int = 1,
    augment: bool = False,
    eigen: bool = False,
    style: Style = "heatmap",
    alpha: float | None = None,
    colormap: str | None = None,
    name: str,
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write maps.png, a PNG per map in overlays/, maps.npz (raw maps, (rows, h, w)) and manifest.json into `out`.

    A row is a picture and a class: `target`, or each of the `top_k` classes that the model finds most probable; of 1000
    classes, ImageNet's, the names are given. After 20 rows the grid goes on in maps-2.png. A column is a method at a
    layer (none: the study's), or with `combine` at all layers together; it is called "method@layer" where there are
    several layers. eigen: the principal component of the channels' contributions instead of their sum, for methods that
    have it. style, alpha, colormap: as for `show_maps`. details: more about the model, for the manifest.
    Returns the manifest, whose rows name their files in overlays/ by column.
    Raises ValueError for pictures, methods, layers, classes and styles that do not fit, before anything is written.
    """
    check_style(style, alpha, colormap)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(
            f"methods hold {', '.join(map(repr, unknown)) or 'none'}, expected some of {', '.join(METHODS)}"
        )
    if eigen and (lacking := [method for method in methods if "reduce" not in options_of(method)]):
        raise ValueError(f"methods hold {', '.join(map(repr, lacking))}, which have no eigen smoothing")
    pictures = [open_picture(path) for path in paths]
    images = preprocess(pictures, model)
    probabilities = np.asarray(jax.nn.softmax(jax.jit(lambda m, x: m(x))(model, images)))
    classes = _classes(probabilities, target, top_k)
    count = classes.shape[1]
    images, labels = np.repeat(images, count, axis=0), classes.ravel()
    seen = [np.asarray(model.transform.framed(picture)) for picture in pictures for _ in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadMapWarning)  # the manifest and the grid say it
        asked = _explanations(methods, layers, combine, augment, eigen)
        made = explain_all(model, images, labels, asked, chunk=16)
    raw = {column: np.asarray(maps) for column, maps in made.items()}
    rows = _described(paths, probabilities, classes, raw)
    grid = show_maps(
        seen,
        {key.replace("@", "\n"): maps for key, maps in raw.items()},
        style=style,
        alpha=alpha,
        colormap=colormap,
        row_titles=[_title(row) for row in rows],
    )
    manifest = {
        "model": name,
        **(details or {}),
        "methods": list(methods),
        "layers": list(layers) or ["features"],
        "combine": combine,
        "augment": augment,
        "eigen_smooth": eigen,
        "style": style,
        "alpha": alpha,
        "colormap": colormap,
        "maps": {key: list(maps.shape) for key, maps in raw.items()},
        "pictures": rows,
    }
    _draw(grid, [row["overlays"].values() for row in rows], out)
    write_file(out / "maps.npz", lambda file: np.savez(file, **cast(Any, raw)))
    write_json(out / "manifest.json", manifest)
    return manifest


def label(row: dict[str, Any]) -> str:
    """What the class of a manifest's row is called: its name, or its number where it has none."""
    return row.get("name", f"class {row['class']}")


def _title(row: dict[str, Any]) -> str:
    file = " ".join(Path(row["file"]).name.splitlines())
    return f"{file}\n{label(row)}: {row['probability']:.1%}"


def _described(
    paths: Sequence[Path], probabilities: np.ndarray, classes: np.ndarray, raw: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The manifest's rows; "dead" are columns with nothing positive to show."""
    names = imagenet_classes() if probabilities.shape[1] == len(imagenet_classes()) else None
    rows: list[dict[str, Any]] = []
    taken: Counter[str] = Counter()
    for path, p, chosen in zip(paths, probabilities, classes, strict=True):
        for number in chosen:
            row = {"file": str(path), "class": int(number)} | ({"name": names[number]} if names else {})
            row["probability"] = float(p[number])
            row["dead"] = [column for column, maps in raw.items() if not (maps[len(rows)] > 0).any()]
            row["overlays"] = {column: f"overlays/{_file_name(row, column, taken)}" for column in raw}
            rows.append(row)
    return rows


def _file_name(row: dict[str, Any], column: str, taken: Counter[str]) -> str:
    """Picture, class and column as a name that every file system takes, unlike those taken."""
    parts = Path(row["file"]).stem[:40], f"{row['class']} {row.get('name', '')}".strip(), column[:80]
    stem = "-".join(re.sub(r"[^\w.+]+", "_", part) for part in parts)
    taken[stem.casefold()] += 1
    number = taken[stem.casefold()]
    return f"{stem}-{number}.png" if number > 1 else f"{stem}.png"


def _draw(grid: Grid, files: Sequence[Iterable[str]], out: Path) -> None:
    """Write the grid, by pages, and each of its maps."""
    (out / "overlays").mkdir(parents=True, exist_ok=True)
    for first in range(0, len(grid.rows), PAGE):
        shown = slice(first, first + PAGE)
        page = replace(grid, rows=grid.rows[shown], row_titles=grid.row_titles[shown], notes=grid.notes[shown])
        page.save(out / (f"maps-{first // PAGE + 1}.png" if first else "maps.png"))
    for names, row in zip(files, grid.rows, strict=True):
        for name, picture in zip(names, row[1:], strict=True):
            write_file(out / name, partial(Image.fromarray(picture).save, format="PNG"))


def _classes(probabilities: np.ndarray, target: int | None, top_k: int) -> np.ndarray:
    """The classes to explain in each picture: (pictures, count)."""
    pictures, known = probabilities.shape
    if target is not None:
        if top_k != 1:
            raise ValueError(f"target (={target}) and top_k (={top_k}) exclude each other")
        return np.full((pictures, 1), target)
    if not 1 <= top_k <= known:
        raise ValueError(f"top_k (={top_k}) must be from 1 to the model's {known} classes")
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]


def _columns(method: str, layers: Sequence[str], combine: Combine | None) -> dict[str, str | tuple[str, ...] | None]:
    """What is drawn of a method: layers, or groups of them, by the column's name."""
    if len(layers) <= 1:
        return {method: layers[0] if layers else None}
    return (
        {f"{method}@{'+'.join(layers)}": tuple(layers)} if combine else {f"{method}@{layer}": layer for layer in layers}
    )


def _explanations(
    methods: Sequence[str], layers: Sequence[str], combine: Combine | None, augment: bool, eigen: bool
) -> dict[str, dict[str, Any]]:
    """What is asked of `explain_all`, by column."""
    options: dict[str, Any] = {"key": jax.random.key(0)} | ({"reduce": eigen_smooth} if eigen else {})
    return {
        column: {"method": method, "layer": chosen, "combine": combine or "mean", "augment": augment}
        | {name: option for name, option in options.items() if name in options_of(method)}
        for method in methods
        for column, chosen in _columns(method, layers, combine).items()
    }

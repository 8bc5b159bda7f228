"""Maps of a user's own pictures: a grid, each map on its picture, the raw maps, and a manifest."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax import Array
from PIL import Image

from dcls_jax.cam import METHODS, DeadMapWarning, eigen_smooth, explain_all, options_of, show_maps
from dcls_jax.cam.grids import QUICK
from dcls_jax.cam.maps import Combine
from dcls_jax.cam.styles import Style, check_style
from dcls_jax.compilation import compiler_options
from dcls_jax.eval.results import check_writable, write_json
from dcls_jax.files import make_folder, write_bytes, write_file
from dcls_jax.models import Backbone, imagenet_classes
from dcls_jax.models.transform import opened, upright

PAGE = 20  # rows of a grid
_GROUP = 16  # pictures at a time


def open_picture(path: Path) -> Image.Image:
    """A picture as RGB, upright. Raises ValueError naming a file that is none."""
    try:
        return upright(opened(path))
    except OSError as error:
        raise ValueError(str(error)) from error


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
    Raises ValueError for pictures, methods, layers, classes and styles that do not fit, before anything is written, and
    OSError where `out` cannot be.
    """
    check_style(style, alpha, colormap)
    check_writable(out)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(
            f"methods hold {', '.join(map(repr, unknown)) or 'none'}, expected some of {', '.join(METHODS)}"
        )
    if eigen and (lacking := [method for method in methods if "reduce" not in options_of(method)]):
        raise ValueError(f"methods hold {', '.join(map(repr, lacking))}, which have no eigen smoothing")
    seen = [np.asarray(model.transform.framed(open_picture(path))) for path in paths]  # and no more of them is kept
    probabilities = np.concatenate([*_by_groups(_predictions(model), seen)])
    classes = _classes(probabilities, target, top_k)
    seen = [picture for picture in seen for _ in range(classes.shape[1])]
    asked = _explanations(methods, layers, combine, augment, eigen)
    parts = _by_groups(_explainer(model, asked), seen, classes.ravel())
    rows = _described(paths, probabilities, classes, list(asked))
    look: dict[str, Any] = {"style": style, "alpha": alpha, "colormap": colormap}
    raw = _draw(_rows_of(parts), seen, rows, look, out)
    manifest = {
        "model": name,
        **(details or {}),
        "methods": list(methods),
        "layers": list(layers) or ["features"],
        "combine": combine,
        "augment": augment,
        "eigen_smooth": eigen,
        **look,
        "maps": {key: list(maps.shape) for key, maps in raw.items()},
        "pictures": rows,
    }
    write_file(out / "maps.npz", lambda file: np.savez(file, **cast(Any, raw)))
    write_json(out / "manifest.json", manifest)
    return manifest


def _predictions(model: Backbone) -> Callable[[Sequence[np.ndarray]], Array]:
    """From what the model sees to probabilities (B, classes)."""
    forward = jax.jit(lambda model, images: jax.nn.softmax(model(images)), compiler_options=compiler_options())
    return lambda seen: forward(model, _inputs(model, seen))


def _explainer(
    model: Backbone, asked: dict[str, dict[str, Any]]
) -> Callable[[Sequence[np.ndarray], np.ndarray], dict[str, Array]]:
    """From what the model sees, and labels, to maps by column."""

    def explained(seen: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, Array]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeadMapWarning)  # the manifest and the grid say it
            return explain_all(model, _inputs(model, seen), labels, asked)

    return explained


def _inputs(model: Backbone, seen: Sequence[np.ndarray]) -> np.ndarray:
    return model.transform.normalised(np.stack(seen))


def _by_groups(function: Callable[..., Any], *arguments: Sequence[Any] | np.ndarray) -> Iterator[Any]:
    """What a function makes of the rows of its arguments, so many at a time that it is compiled once."""
    count = len(arguments[0])
    size = min(_GROUP, count)
    for start in range(0, count, size):
        first = min(start, count - size)  # the last group is filled up with rows before it
        made = function(*(rows[first : first + size] for rows in arguments))
        yield jax.tree.map(lambda array, done=start - first: np.asarray(array)[done:], made)


def _rows_of(parts: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """The maps of each row, by column."""
    for part in parts:
        for maps in zip(*part.values(), strict=True):
            yield dict(zip(part, maps, strict=True))


def _draw(
    maps: Iterator[dict[str, np.ndarray]],
    seen: Sequence[np.ndarray],
    rows: Sequence[dict[str, Any]],
    look: dict[str, Any],
    out: Path,
) -> dict[str, np.ndarray]:
    """Draw maps as they come, by pages of the grid, and say in `rows` which are dead; all of them, by column."""
    kept: list[dict[str, np.ndarray]] = []
    for first in range(0, len(rows), PAGE):
        page = slice(first, first + PAGE)
        kept += islice(maps, len(rows[page]))
        raw = _columns_of(kept[page])
        for row, of_row in zip(rows[page], kept[page], strict=True):
            row["dead"] = [column for column, values in of_row.items() if not (values > 0).any()]
        titles = [_title(row) for row in rows[page]]
        named = {key.replace("@", "\n"): values for key, values in raw.items()}
        grid = show_maps(seen[page], named, row_titles=titles, **look)
        make_folder(out / "overlays")
        write_bytes(out / (f"maps-{first // PAGE + 1}.png" if first else "maps.png"), grid.png())
        for row, pictures in zip(rows[page], grid.rows, strict=True):
            for name, picture in zip(row["overlays"].values(), pictures[1:], strict=True):
                write_file(out / name, partial(Image.fromarray(picture).save, **QUICK))
    return _columns_of(kept)


def _columns_of(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {column: np.stack([row[column] for row in rows]) for column in rows[0]}


def label(row: dict[str, Any]) -> str:
    """What the class of a manifest's row is called: its name, or its number where it has none."""
    return row.get("name", f"class {row['class']}")


def _title(row: dict[str, Any]) -> str:
    file = " ".join(Path(row["file"]).name.splitlines())
    return f"{file}\n{label(row)}: {row['probability']:.1%}"


def _described(
    paths: Sequence[Path], probabilities: np.ndarray, classes: np.ndarray, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """The manifest's rows; "dead", columns with nothing positive to show, is known once they are drawn."""
    names = imagenet_classes() if probabilities.shape[1] == len(imagenet_classes()) else None
    rows: list[dict[str, Any]] = []
    taken: Counter[str] = Counter()
    for path, p, chosen in zip(paths, probabilities, classes, strict=True):
        for number in chosen:
            row = {"file": str(path), "class": int(number)} | ({"name": names[number]} if names else {})
            row |= {"probability": float(p[number]), "dead": []}
            row["overlays"] = {column: f"overlays/{_file_name(row, column, taken)}" for column in columns}
            rows.append(row)
    return rows


def _file_name(row: dict[str, Any], column: str, taken: Counter[str]) -> str:
    """Picture, class and column as a name that every file system takes, unlike those taken."""
    parts = Path(row["file"]).stem[:40], f"{row['class']} {row.get('name', '')}".strip(), column[:80]
    stem = "-".join(re.sub(r"[^\w.+]+", "_", part) for part in parts)
    taken[stem.casefold()] += 1
    number = taken[stem.casefold()]
    return f"{stem}-{number}.png" if number > 1 else f"{stem}.png"


def _classes(probabilities: np.ndarray, target: int | None, top_k: int) -> np.ndarray:
    """The classes to explain in each picture: (pictures, count)."""
    pictures, known = probabilities.shape
    if target is not None:
        if top_k != 1:
            raise ValueError(f"target (={target}) and top_k (={top_k}) exclude each other")
        if not 0 <= target < known:
            raise ValueError(f"target is label {target}, but the model has classes 0 to {known - 1}")
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

"""Maps of a user's own pictures: a grid, the raw maps, and a manifest."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from dcls_jax.cam import METHODS, DeadMapWarning, eigen_smooth, explain, options_of, show_maps
from dcls_jax.cam.postprocess import Combine
from dcls_jax.cam.styles import Style
from dcls_jax.eval.results import write_file, write_json
from dcls_jax.models import Backbone, preprocess
from dcls_jax.models.transform import upright


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
    name: str,
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write maps.png, maps.npz (raw maps, (rows, h, w)) and manifest.json into `out`; return the manifest.

    A row is a picture and a class: `target`, or each of the `top_k` classes that the model finds most probable. A
    column is a method at a layer (none: the study's), or with `combine` at all layers together; it is called
    "method@layer" where there are several layers. eigen: the principal component of the channels' contributions instead
    of their sum, for methods that have it. details: more about the model, for the manifest.
    Raises ValueError for pictures, methods, layers and classes that do not fit, before anything is written.
    """
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
    raw = {
        column: np.asarray(_maps(model, images, labels, method, chosen, combine, augment, eigen))
        for method in methods
        for column, chosen in _columns(method, layers, combine).items()
    }
    rows: list[dict[str, Any]] = [
        {"file": str(path), "class": int(label), "probability": float(p[label])}
        for path, p, chosen in zip(paths, probabilities, classes, strict=True)
        for label in chosen
    ]
    for index, row in enumerate(rows):
        # Columns with nothing positive to show.
        row["dead"] = [column for column, maps in raw.items() if not (maps[index] > 0).any()]
    titles = [f"{Path(row['file']).name}\nclass {row['class']}: {row['probability']:.1%}" for row in rows]
    grid = show_maps(seen, {key.replace("@", "\n"): maps for key, maps in raw.items()}, style=style, row_titles=titles)
    manifest = {
        "model": name,
        **(details or {}),
        "methods": list(methods),
        "layers": list(layers) or ["features"],
        "combine": combine,
        "augment": augment,
        "eigen_smooth": eigen,
        "style": style,
        "maps": {key: list(maps.shape) for key, maps in raw.items()},
        "pictures": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    grid.save(out / "maps.png")
    write_file(out / "maps.npz", lambda file: np.savez(file, **cast(Any, raw)))
    write_json(out / "manifest.json", manifest)
    return manifest


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


def _maps(
    model: Backbone,
    images: np.ndarray,
    labels: np.ndarray,
    method: str,
    layer: str | tuple[str, ...] | None,
    combine: Combine | None,
    augment: bool,
    eigen: bool,
) -> jax.Array:
    options: dict[str, Any] = {"key": jax.random.key(0)} if "key" in options_of(method) else {}
    if eigen:
        options["reduce"] = eigen_smooth
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadMapWarning)  # the manifest and the grid say it
        return explain(
            model,
            images,
            labels,
            method=method,
            layer=layer,
            combine=combine or "mean",
            augment=augment,
            chunk=16,
            **options,
        )

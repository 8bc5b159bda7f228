"""Maps of a user's own pictures: a grid, the raw maps, and a manifest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from dcls_jax.cam import METHODS, explain, overlay, postprocess, save_grid
from dcls_jax.eval.results import write_file, write_json
from dcls_jax.models import Backbone, preprocess


def open_picture(path: Path) -> Image.Image:
    """A picture as RGB. Raises ValueError naming a file that is none."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error


def explain_pictures(
    model: Backbone,
    paths: Sequence[Path],
    out: Path,
    *,
    methods: Sequence[str],
    layer: str | None = None,
    target: int | None = None,
    name: str,
) -> None:
    """Write maps.png (pictures x methods), maps.npz (raw maps by method, (B, h, w)) and manifest.json into `out`.

    target: the class explained in every picture; unless given, the class that the model predicts for each.
    Raises ValueError for pictures, methods, layers and targets that do not fit, before anything is computed.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"methods hold {unknown[0]!r}, expected some of {', '.join(METHODS)}")
    pictures = [open_picture(path) for path in paths]
    images = preprocess(pictures, model)
    probabilities = np.asarray(jax.nn.softmax(jax.jit(lambda m, x: m(x))(model, images)))
    labels = probabilities.argmax(-1) if target is None else np.full(len(paths), target)
    raw = {
        method: np.asarray(explain(model, images, labels, method=method, layer=layer, chunk=16)) for method in methods
    }
    seen = [np.asarray(model.transform.framed(picture)) for picture in pictures]
    columns = {"image": seen}
    for method, maps in raw.items():
        shown = np.asarray(postprocess(maps, size=model.transform.crop))
        columns[method] = [overlay(picture, heatmap) for picture, heatmap in zip(seen, shown, strict=True)]
    predictions = list(zip(paths, labels, probabilities, strict=True))
    titles = [f"{path.name}\nclass {label}: {p[label]:.1%}" for path, label, p in predictions]
    out.mkdir(parents=True, exist_ok=True)
    save_grid(
        out / "maps.png", list(zip(*columns.values(), strict=True)), column_titles=list(columns), row_titles=titles
    )
    write_file(out / "maps.npz", lambda file: np.savez(file, **cast(Any, raw)))
    manifest = {
        "model": name,
        "layer": layer or "features",
        "methods": list(methods),
        "pictures": [
            {"file": str(path), "class": int(label), "probability": float(p[label]), "dead": dead}
            for (path, label, p), dead in zip(predictions, _dead(raw, len(paths)), strict=True)
        ],
    }
    write_json(out / "manifest.json", manifest)


def _dead(raw: dict[str, np.ndarray], count: int) -> list[list[str]]:
    """For each picture, the methods whose map has nothing positive to show."""
    return [[method for method, maps in raw.items() if not (maps[i] > 0).any()] for i in range(count)]

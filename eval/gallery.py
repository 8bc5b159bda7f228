"""The pictures that a report shows of its comparisons: which ones, and their maps as pictures to lay over them.

`write` makes a folder with `gallery.json`, a JPEG of each picture, and small PNGs of one colour that are the less
transparent the larger the map is there, of people and of each model and method.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from dcls_jax.eval.report.collection import Row
from dcls_jax.eval.report.grouping import DCLS, Table, tables
from dcls_jax.eval.report.measures import measure_of, records_of
from dcls_jax.eval.results import write_json
from dcls_jax.eval.stored import Stored
from dcls_jax.files import as_path, make_folder, write_bytes
from dcls_jax.models import imagenet_classes

GALLERY = "gallery.json"
KINDS = "best", "median", "worst", "most changed"
_SIDE = 112  # pixels of the longer side of a map's picture
_PHOTO = 224  # of a photograph's
_LEVELS = 64  # of transparency
_COLOURS = {"people": (0, 114, 178), "model": (213, 94, 0)}  # blue and vermilion of Okabe and Ito


class PictureSample(NamedTuple):
    """What maps lie over: image (H, W, 3) uint8, as the model sees it; a human map (h, w), boxes (n, 4) x0, y0, x1, y1.

    The ends of a box are inside it. Maps, of any size, cover the whole image.
    """

    image: np.ndarray
    human: np.ndarray | None = None
    boxes: ArrayLike | None = None


class Pick(NamedTuple):
    """A record, why it is shown, and the scores of both models."""

    kind: str
    record: int
    a: float
    b: float


def choose(a: ArrayLike, b: ArrayLike, *, better: int = 1, count: int = 3) -> list[Pick]:
    """So many records of each of KINDS, by paired scores a and b (n,), NaN where one does not count.

    Best, median and worst by the score of a; most changed by the difference; of equal ones the first. A record may be
    of two kinds, and there are fewer where fewer count for both. better: 1 where higher scores are better, else -1.
    Raises ValueError for scores of two shapes, and a count below 1.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"a and b must be scores of the same records, got shapes {first.shape} and {second.shape}")
    if count < 1:
        raise ValueError(f"count (={count}) must be at least 1")
    common = np.flatnonzero(np.isfinite(first) & np.isfinite(second))
    ranked = common[np.argsort(-better * first[common], kind="stable")]
    changed = common[np.argsort(-abs(first - second)[common], kind="stable")]
    middle = max(0, (len(ranked) - count) // 2)
    chosen = ranked[:count], ranked[middle : middle + count], ranked[::-1][:count], changed[:count]
    return [
        Pick(kind, int(record), float(first[record]), float(second[record]))
        for kind, records in zip(KINDS, chosen, strict=True)
        for record in records
    ]


def write(
    folder: str | PathLike[str],
    results: Sequence[Stored],
    sample: Callable[[int], PictureSample],
    maps: Callable[[str, str, np.ndarray, int], ArrayLike],
    *,
    count: int = 3,
    num_classes: int | None = None,
) -> Path:
    """Write the gallery of the first metric of `results`, all of which are of the records that `sample` has by number.

    maps(model, method, image, label) -> (h, w), larger is more important. Each model with DCLS is compared with the
    same without; where there is no such pair, a model with itself. num_classes: of the models; of 1000 pictures are
    called by ImageNet's names, else by the number. Returns the path of `gallery.json`.
    Raises ValueError where no result has scores of single records, or maps that are not finite or no (h, w).
    """
    table, name = _of_interest(results)
    pairs = table.pairs() or [(row, row) for row in table.rows if not row.result.name.endswith(DCLS)]
    comparisons = [(plain, dcls, _picks(plain, dcls, name, count)) for plain, dcls in pairs]
    needed: dict[int, dict[tuple[str, str], None]] = {}
    for *rows, picks in comparisons:
        for pick in picks:
            of = ((row.result.name, row.result.labels["method"]) for row in rows)
            needed.setdefault(pick.record, {}).update(dict.fromkeys(of))
    names = imagenet_classes() if num_classes == 1000 else ()
    path = as_path(folder)
    make_folder(path)
    first, pictures = table.rows[0], {}
    for record, of_models in sorted(needed.items()):
        label, shown = int(first.result.classes[record]), sample(record)
        found = {which: maps(*which, shown.image, label) for which in of_models}
        pictures[str(record)] = {
            "class": names[label] if 0 <= label < len(names) else str(label) if label >= 0 else "",
            "place": first.of.places[record],
            **_written(path, record, shown, found),
        }
    content = {
        "title": table.title,
        "value": name,
        "comparisons": [_comparison(*comparison) for comparison in comparisons],
        "pictures": pictures,
    }
    write_json(path / GALLERY, content)
    return path / GALLERY


def _of_interest(results: Sequence[Stored]) -> tuple[Table, str]:
    """The first table that compares models with and without DCLS, else the first with scores of records."""
    found = ((of, result) for of in results for result in of.results if "method" in result.labels)
    rows = [Row(number, of, result) for number, (of, result) in enumerate(found)]
    having = [table for table in tables(rows) if table.compared]
    if not having:
        raise ValueError("results have no scores of single records by a method: there is nothing to choose pictures by")
    table = next((table for table in having if table.pairs()), having[0])
    return table, table.compared[0]


def _picks(plain: Row, dcls: Row, name: str, count: int) -> list[Pick]:
    scores = [records_of(row.result, name) for row in (dcls, plain)]
    if scores[0] is None or scores[1] is None:
        return []
    return choose(scores[0], scores[1], better=measure_of(name).better, count=count)


def _comparison(plain: Row, dcls: Row, picks: Sequence[Pick]) -> dict[str, Any]:
    return {
        "a": dcls.result.name,
        "b": plain.result.name,
        "paired": plain is not dcls,
        "method": dcls.result.labels["method"],
        "picks": [pick._asdict() for pick in picks],
    }


def _written(
    folder: Path, record: int, shown: PictureSample, of_models: Mapping[tuple[str, str], ArrayLike]
) -> dict[str, Any]:
    """The files of a picture and its maps, and its boxes as shares of width and height."""
    height, width = shown.image.shape[:2]
    size = height, width
    photo = Image.fromarray(shown.image)
    photo.thumbnail((_PHOTO, _PHOTO), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=85)
    write_bytes(folder / f"{record}.jpg", content.getvalue())
    human = None
    if shown.human is not None:
        human = f"{record}-people.png"
        write_bytes(folder / human, map_picture(shown.human, size, _COLOURS["people"]))
    files: dict[str, dict[str, str]] = {}
    for number, ((model, method), map) in enumerate(of_models.items()):
        file = f"{record}-{number}.png"
        write_bytes(folder / file, map_picture(map, size, _COLOURS["model"]))
        files.setdefault(model, {})[method] = file
    boxes = np.asarray([] if shown.boxes is None else shown.boxes, np.float64).reshape(-1, 4)
    ends = (boxes + [0, 0, 1, 1]) / [width, height, width, height]
    return {
        "image": f"{record}.jpg",
        "size": [width, height],
        "people": human,
        "boxes": ends.round(4).tolist(),
        "maps": files,
    }


def map_picture(map: ArrayLike, size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    """A map (h, w) over an image of that size as a PNG of one colour, opaque at its maximum, clear at its minimum.

    A constant map is clear. Raises ValueError for one that is not (h, w), or not finite.
    """
    values = np.asarray(map, np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"maps must be (h, w) of finite values, got one of shape {values.shape}")
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    side = _SIDE / max(size)
    alpha = Image.fromarray(shares).resize((round(size[1] * side), round(size[0] * side)), Image.Resampling.BILINEAR)
    picture = Image.new("P", alpha.size)
    picture.putdata((np.asarray(alpha) * (_LEVELS - 1)).round().astype(np.uint8).ravel().tolist())
    picture.putpalette(colour * _LEVELS)
    content = io.BytesIO()
    picture.save(
        content, "PNG", optimize=True, transparency=bytes(round(255 * i / (_LEVELS - 1)) for i in range(_LEVELS))
    )
    return content.getvalue()

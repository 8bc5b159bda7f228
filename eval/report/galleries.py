"""The galleries beside results, with their pictures as data that a page holds."""

import base64
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from dcls_jax.eval.gallery import GALLERY
from dcls_jax.eval.results import ResultsError, read_json

_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


def galleries(paths: Sequence[str | PathLike[str]]) -> list[dict[str, Any]]:
    """The content of each `gallery.json` below the folders, or beside one that is itself of results; files as data URIs.

    Raises ResultsError, naming it, for one that cannot be read, or whose pictures are not there.
    """
    found = dict.fromkeys(
        file.resolve()
        for path in map(Path, paths)
        for file in sorted([*path.rglob(GALLERY), *(_beside(path) if (path / "run.json").exists() else ())])
    )
    return [_embedded(file) for file in found]


def _beside(path: Path) -> Iterator[Path]:
    return path.resolve().parent.glob(f"*/{GALLERY}")


def _embedded(file: Path) -> dict[str, Any]:
    content = read_json(file)
    try:
        for picture in content["pictures"].values():
            picture["image"] = _uri(file.parent, picture["image"])
            picture["people"] = picture["people"] and _uri(file.parent, picture["people"])
            for by_method in picture["maps"].values():
                for method, name in by_method.items():
                    by_method[method] = _uri(file.parent, name)
        for comparison in content["comparisons"]:
            if any(str(pick["record"]) not in content["pictures"] for pick in comparison["picks"]):
                raise KeyError("a record that is picked has no picture")
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise ResultsError(f"{file} is no gallery ({error}); write it anew") from error
    return content


def _uri(folder: Path, name: str) -> str:
    """A file of the folder itself."""
    file = folder / Path(name).name
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"

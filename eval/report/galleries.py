"""The galleries beside results, with their pictures as data that a page holds."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcls_jax.eval.gallery import GALLERY
from dcls_jax.eval.results import ResultsError, read_json
from dcls_jax.files import AnyPath, as_path, read_bytes

_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


def galleries(paths: Sequence[AnyPath]) -> list[dict[str, Any]]:
    """The content of each `gallery.json` below the folders, or beside a results folder among them; files as data URIs.

    Raises ResultsError, naming it, for one that cannot be read, or whose pictures are not there.
    """
    found = dict.fromkeys(
        file.resolve()
        for path in map(as_path, paths)
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
        if not all(_has_maps(content, comparison) for comparison in content["comparisons"]):
            raise KeyError("a picture lacks a map")
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise ResultsError(f"{file} is no gallery ({error}); write it anew") from error
    return content


def _has_maps(content: Mapping[str, Any], comparison: Mapping[str, Any]) -> bool:
    """Whether each picture that a comparison picks has the maps of both sides."""
    of_picks = (content["pictures"][str(pick["record"])]["maps"] for pick in comparison["picks"])
    return all(comparison["method"] in maps[comparison[side]] for maps in of_picks for side in ("a", "b"))


def _uri(folder: Path, name: str) -> str:
    """A file of the folder itself."""
    file = folder / Path(name).name
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(read_bytes(file)).decode()}"

"""A folder of results that a killed run leaves usable and a rerun completes.

`run.json` says what is computed, `part-000000.npz` and so on hold one batch each, `summary.json` is written last. Files
appear under their names only when complete; a half-written one keeps the ending `.tmp` and is written anew.
"""

import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

import jax
import numpy as np

Arrays = dict[str, np.ndarray]

_SHOWN = 10  # lines of a list of what is wrong


class ResultsError(ValueError):
    """The folder holds another run's results, or damaged ones; the message says which and what to do."""


class ResultsFolder:
    """Results of the run that `identity` (JSON values) describes, in the folder `path`, made if it is not there.

    Many processes may share the folder; process 0 writes what is not a part.
    Raises ResultsError, naming the differences, if the folder holds the results of a run with another identity.
    """

    def __init__(self, path: str | PathLike[str], identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self._identity = json.loads(json.dumps(identity))
        self._computed = False
        self.path.mkdir(parents=True, exist_ok=True)
        run = self.path / "run.json"
        if run.exists():
            self._check_same(_read_json(run))
        elif any(self.path.glob("part-*.npz")):
            raise ResultsError(f"{self.path} holds parts of a run without its run.json; choose another folder")
        elif jax.process_index() == 0:
            write_json(run, {"started": _now()} | self._identity)

    def _check_same(self, found: dict[str, Any]) -> None:
        there, here = dict(_flat(found)), dict(_flat(self._identity))
        there.pop("started", None)
        differences = [
            f"  {key}: {there.get(key)!r} there, {here.get(key)!r} now"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        if differences:
            lines = "\n".join(differences)
            raise ResultsError(f"{self.path} holds the results of another run; choose another folder.\n{lines}")

    def part(self, batch: int) -> Path:
        """Where the results of a batch are, or will be."""
        return self.path / f"part-{batch:06d}.npz"

    def has(self, batch: int) -> bool:
        """Whether a batch is done."""
        return self.part(batch).exists()

    def save(self, batch: int, arrays: Arrays) -> None:
        """Keep the results of one batch."""
        self._computed = True
        write_file(self.part(batch), lambda file: np.savez(file, **cast(Any, arrays)))

    def read(self, batch: int, length: int) -> Arrays:
        """The results of one batch, of `length` rows. Raises ResultsError naming a part that cannot be read."""
        path = self.part(batch)
        try:
            with path.open("rb") as file, np.load(file) as part:
                arrays = dict(part)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ResultsError(f"{path} cannot be read ({error}); delete it and run again") from error
        if any(len(array) != length for array in arrays.values()):
            raise ResultsError(f"{path} does not hold {length} results; delete it and run again")
        return arrays

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, unless it is there already and nothing new was computed."""
        path = self.path / "summary.json"
        if jax.process_index() == 0 and (self._computed or not path.exists()):
            write_json(path, {"finished": _now()} | summary | self._identity)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        yield key, value
        return
    for name, item in items:
        yield from _flat(item, f"{key}.{name}" if key else str(name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path} cannot be read ({error}); choose another folder") from error
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON values, NaN as null."""
    text = json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def _without_nan(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears under its name only when complete."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
    os.replace(temporary, path)


def shortened(lines: Sequence[str]) -> list[str]:
    """The first ten lines, and how many more there are."""
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"and {more} more"] if more > 0 else [*lines]


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z")

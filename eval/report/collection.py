"""Which results a report is of: those in the folders that are named, and in folders below them."""

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.demo import SAMPLE
from dcls_jax.eval.metric import Result
from dcls_jax.eval.results import ResultsError
from dcls_jax.eval.stored import Stored, stored
from dcls_jax.files import AnyPath, as_path


class Row(NamedTuple):
    """A result, where it is stored, and its number among all, by which pages and files refer to it."""

    number: int
    of: Stored
    result: Result

    @property
    def data(self) -> str:
        """What tells the data from others."""
        return json.dumps(self.of.run.get("data"), sort_keys=True)

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells the result from others that are right at the same time."""
        return (*_evaluation(self.of, self.result), self.result.name, self.data)


class Collection(NamedTuple):
    """Results in the order of their folders' names, and a line for each folder that was left out."""

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]

    @property
    def folders(self) -> list[Stored]:
        """The results folders, each once."""
        return list({row.of.folder: row.of for row in self.rows}.values())


def collect(paths: Sequence[AnyPath]) -> Collection:
    """Results in the folders `paths`, or below them; of one evaluation that is there twice, those begun last.

    Folders below them without a finished run are left out, with a warning each.
    Raises ResultsError for a path that is no folder, holds no results, or is itself an unfinished run.
    """
    found: dict[Path, Stored] = {}
    left_out: list[str] = []
    for path in map(as_path, paths):
        folders = sorted(_folders(path))
        if not folders:
            raise ResultsError(f"{path} holds no results (run.json), nor does a folder below it")
        for folder in folders:
            try:
                found.setdefault(folder.resolve(), stored(folder))
            except ResultsError as error:
                if folder == path:
                    raise
                left_out.append(str(error))
    if not found:
        raise ResultsError("\n".join(["no finished results:", *left_out]))
    kept, doubled = _newest([(of, result) for of in found.values() for result in of.results])
    for line in (lines := tuple(left_out + doubled)):
        warnings.warn(line, stacklevel=2)
    return Collection(tuple(Row(number, *pair) for number, pair in enumerate(kept)), lines)


def _folders(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise ResultsError(f"{path} is no folder")
    return (file.parent for file in path.rglob("run.json"))


def _evaluation(of: Stored, result: Result) -> tuple[str, ...]:
    return (result.title, *(f"{name} {value}" for name, value in sorted(result.labels.items())))


def _newest(found: Sequence[tuple[Stored, Result]]) -> tuple[list[tuple[Stored, Result]], list[str]]:
    kept: dict[tuple[str, ...], tuple[Stored, Result]] = {}
    lines: dict[str, None] = {}
    for pair in found:
        identity = Row(0, *pair).identity
        if identity not in kept:
            kept[identity] = pair
            continue
        older, newer = sorted((kept[identity], pair), key=lambda it: str(it[0].run.get("started")))
        kept[identity] = newer
        lines[
            f"{older[0].folder} and {newer[0].folder} hold the same evaluation; the later is shown, {newer[0].folder}"
        ] = None
    return list(kept.values()), list(lines)


def is_sample(row: Row) -> bool:
    """Whether a result is of the sample that comes with the package, or of a part of it, as far as its folder tells."""
    return _holds(row.of.run.get("data"), ClickMe(SAMPLE).identity())


def _holds(value: Any, data: Any) -> bool:
    return value == data or (isinstance(value, dict) and any(_holds(inner, data) for inner in value.values()))

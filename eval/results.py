"""A folder of results that a killed run leaves usable and a rerun completes.

`run.json` says what is computed, `part-000000.npz` and so on hold one batch each, `places.json` says where each record
is, and `summary.json` is written last; `load` reads them. By `lock` one run at a time holds the folder
(`models/locks.py` says where). Files appear under their names only when complete; a half-written one, which only a
killed run leaves, keeps the ending `.tmp` and is written anew.
"""

import errno
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import jax
import numpy as np

from dcls_jax.eval.hosts import together
from dcls_jax.eval.locks import ResultsError, hold
from dcls_jax.eval.status import Scores, Status, counted
from dcls_jax.files import AnyPath, as_path, is_remote, make_folder, read_bytes, write_bytes, write_file
from dcls_jax.models.locks import now
from dcls_jax.models.state_dicts import shortened

Arrays = dict[str, np.ndarray]

PLACES = "places.json"
_CIRCUMSTANCES = (
    "started",
    "finished",
    "seconds",
    "command",
    "peak_bytes",
)  # what may differ between two runs of one thing


class ResultsFolder:
    """Results of the run that `identity` (JSON values) describes, in the folder `path`, made if it is not there.

    The processes of one job share the folder, and begin together; process 0 writes what is not a part, and holds the
    folder against other jobs until it is closed.
    Raises ResultsError, naming the differences, if the folder holds the results of a run with another identity, or
    naming the run that is at work there; OSError where the folder cannot be written.
    """

    def __init__(self, path: AnyPath, identity: dict[str, Any]) -> None:
        self.path = as_path(path)
        self._identity = json.loads(json.dumps(identity))
        self.close: Callable[[], object] = lambda: None
        try:
            with together():
                if jax.process_index() == 0:
                    self._begin()
            with together():
                self._check_same(read_json(self.path / "run.json"))
            self._done = {part.name for part in self.path.glob("part-*.npz")}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        make_folder(self.path)
        self.close = weakref.finalize(self, hold(self.path))
        run = self.path / "run.json"
        if not run.exists():
            if any(self.path.glob("part-*.npz")):
                raise ResultsError(f"{self.path} holds parts of a run without its run.json; choose another folder")
            write_json(
                run, {"started": now(), "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])} | self._identity
            )

    def _check_same(self, found: dict[str, Any]) -> None:
        there, here = _flat(found), _flat(self._identity)
        differences = [
            f"  {key:.200}: {there.get(key)!r:.200} there, {here.get(key)!r:.200} now"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        if differences:
            lines = "\n".join(shortened(differences))
            raise ResultsError(f"{self.path} holds the results of another run; choose another folder.\n{lines}")

    def part(self, batch: int) -> Path:
        """Where the results of a batch are, or will be."""
        return self.path / f"part-{batch:06d}.npz"

    def has(self, batch: int) -> bool:
        """Whether a batch is done."""
        return self.part(batch).name in self._done

    def save(self, batch: int, arrays: Arrays) -> None:
        """Keep the results of one batch."""
        write_file(self.part(batch), lambda file: np.savez(file, **cast(Any, arrays)))
        self._done.add(self.part(batch).name)

    def read(self, batch: int, length: int) -> Arrays:
        """The results of one batch, of `length` rows. Raises ResultsError naming a part that cannot be read."""
        path = self.part(batch)
        arrays = _arrays(path)
        if any(len(array) != length for array in arrays.values()):
            raise ResultsError(f"{path} does not hold {length} results; delete it and run again")
        return arrays

    def finish(self, summary: dict[str, Any], places: list[str]) -> None:
        """Write `places.json`, and `summary.json` unless one is there that says the same."""
        if jax.process_index() != 0:
            return
        if not (self.path / PLACES).exists():
            write_json(self.path / PLACES, {"places": places})
        path, content = self.path / "summary.json", _without_nan(summary | self._identity)
        try:
            if _flat(read_json(path)) == _flat(content):
                return
        except (OSError, ResultsError):
            pass  # none, or one cut short
        write_json(path, {"finished": now()} | content)


class Contents(NamedTuple):
    """What a finished results folder holds: `run.json`, `summary.json`, columns of all parts in data order, places."""

    run: dict[str, Any]
    summary: dict[str, Any]
    columns: Arrays
    places: list[str]


def contents(folder: AnyPath) -> Contents:
    """Read a finished results folder. Raises ResultsError, naming what is missing or cannot be read."""
    path = as_path(folder)
    if not (path / "summary.json").exists():
        unfinished = (path / "run.json").exists()
        raise ResultsError(
            f"{path} holds {'an unfinished run; run it again to its end' if unfinished else 'no results (run.json)'}"
        )
    run, summary, places = (read_json(path / name) for name in ("run.json", "summary.json", PLACES))
    parts = [_arrays(part) for part in sorted(path.glob("part-*.npz"))]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    if any(len(column) != len(places["places"]) for column in columns.values()) or not columns:
        raise ResultsError(f"{path} lacks parts of its {len(places['places'])} records; run it again")
    return Contents(run, summary, columns, places["places"])


def load(folder: AnyPath) -> Arrays:
    """The scores of single records, as columns of equal length: `pandas.DataFrame(load(folder))`, polars likewise.

    A row for each record and variant: "record" its number in data order, "place" its file and number there, "label" its
    class or -1, the labels of the result ("method", "protocol" or "preset" and so on), "model", "status" in words, and
    the values, float32, NaN where the record does not count or the variant has no such value. Values of several numbers
    (curves) have two axes, and are not in the table: the parts hold them, as "variant.value".
    Raises ResultsError for a folder without a finished run.
    """
    run, summary, columns, places = contents(folder)
    tables = [
        _rows(variant, entry, run["arguments"]["name"], columns, np.array(places))
        for variant, entry in summary["results"].items()
    ]
    names = dict.fromkeys(name for table in tables for name in table)
    empty = np.full(len(places), np.nan, np.float32)
    return {name: np.concatenate([table.get(name, empty) for table in tables]) for name in names}


def _rows(variant: str, entry: dict[str, Any], model: str, columns: Arrays, places: np.ndarray) -> Arrays:
    count, (values, status) = len(places), scores_of(columns, variant)
    return {
        "record": np.arange(count),
        "place": places,
        "label": columns["label"],
        **{name: np.full(count, label) for name, label in {"model": model, **entry["labels"]}.items()},
        "status": np.array(list(Status))[status],
        **{name: column.astype(np.float32) for name, column in values.items() if column.ndim == 1},
    }


def scores_of(columns: Arrays, variant: str) -> Scores:
    """A variant's, of a folder's columns, NaN where a record does not count."""
    own = {
        name.removeprefix(f"{variant}."): column for name, column in columns.items() if name.startswith(f"{variant}.")
    }
    return counted(Scores(own, own.pop("status")))


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """What JSON values say, by the path of each, times apart."""
    return {".".join(path): value for path, value in _leaves(content) if path[-1] not in _CIRCUMSTANCES}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    else:
        for name, item in items:
            yield from _leaves(item, (*path, str(name)))


def _arrays(path: Path) -> Arrays:
    try:
        with np.load(io.BytesIO(read_bytes(path))) as part:
            return dict(part)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResultsError(f"{path} cannot be read ({error}); delete it and run again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ResultsError for what cannot be read as one."""
    try:
        content = json.loads(read_bytes(path).decode())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        _flat(content)  # nested less deep than the parser bears, it may still be too deep here
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} cannot be read ({error}); choose another folder") from error
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON values, NaN as null; what is not valid Unicode, as a file's name may be, as JSON's own escapes."""
    text = json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))


def _without_nan(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value


def check_writable(folder: Path, size: int = 4096) -> None:
    """Raise OSError, naming it, for a folder that cannot be made or take so many bytes: known before long work."""
    if is_remote(folder):
        _check_store(folder)
        return
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
        if shutil.disk_usage(there).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(there)) from error


def _check_store(folder: Path) -> None:
    probe = folder / f".writable-{os.getpid()}"
    try:
        make_folder(folder)
        write_bytes(probe, b"")
        probe.unlink()
    except Exception as error:  # each store has its own: no network, no credentials, no such bucket
        raise OSError(f"{folder} cannot be written ({type(error).__name__}: {error})") from error

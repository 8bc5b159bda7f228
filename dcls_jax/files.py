"""Files where users keep them, on disks and at URLs that fsspec knows: read by ranges, written whole or not at all."""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

AnyPath = str | PathLike[str] | Path  # or a URL's, as `as_path` makes them

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PUTS_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}  # where an object is there at once, or not
_BLOCK = 2**20  # bytes that are asked for at once of a file read from its begin


def is_url(path: Any) -> bool:
    """Whether a text is a URL and no path."""
    return isinstance(path, str) and _URL.match(path) is not None


def as_path(path: AnyPath) -> Path:
    """A path; of a URL, such as s3://bucket/run, what has a path's methods (universal_pathlib's UPath).

    Raises ValueError for a URL that nothing here can read, saying what to install.
    """
    if not is_url(path):
        return Path(path) if isinstance(path, str | PathLike) else path
    try:
        from upath import UPath

        found = UPath(path, use_listings_cache=False)  # others write there too
        _ = found.fs
    except ImportError as error:
        raise ValueError(f"{path} needs an extra: pip install 'dcls_jax[remote]' ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path} is no URL that fsspec knows: {error}") from error
    return cast(Path, found)


def is_remote(path: Path) -> bool:
    """Whether a path is of a URL."""
    return not isinstance(path, Path)


def joined(folder: Path, path: str) -> Path:
    """A path relative to a folder; a URL is itself."""
    return as_path(path) if is_url(path) else folder / path


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none; object stores have no folders."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
    elif _protocol(path) not in _PUTS_WHOLE:
        _fs(path).makedirs(_key(path), exist_ok=True)


def open_forward(path: Path) -> BinaryIO:
    """A file to read from its begin on, with gaps; of a URL, ranges of a MiB are asked for."""
    if is_remote(path):
        return _fs(path).open(_key(path), "rb", block_size=_BLOCK, cache_type="readahead")
    return path.open("rb")


def read_bytes(path: Path) -> bytes:
    """A file's content, of a URL by one request, so that it is as one writer left it. Raises FileNotFoundError."""
    return _fs(path).cat_file(_key(path)) if is_remote(path) else path.read_bytes()


def read_range(path: Path, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop` of a file, fewer where it ends, of a URL by one request; threads may all ask."""
    if is_remote(path):
        return _fs(path).cat_file(_key(path), start=start, end=stop)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def found_by(pattern: str) -> list[Path]:
    """The files that a URL with wildcards names."""
    path = as_path(pattern)
    return [as_path(_fs(path).unstrip_protocol(name)) for name in _fs(path).glob(_key(path))]


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A file or folder of a URL on this machine's disk, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as place:
        there = Path(place, path.name)
        _fs(path).get(_key(path), str(there), recursive=path.is_dir())
        yield there


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears under its name only when complete, and replaces one of that name.

    Until then its name ends in .tmp; only a killed process leaves such a file. OSError names `path`, a full disk's too.
    """
    if is_remote(path):
        content = io.BytesIO()
        write(content)
        _put(path, content.getvalue())
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when complete."""
    write_file(path, lambda file: file.write(content))


def create(path: Path, content: bytes) -> None:
    """Write a file of a URL, by one of several that try. Raises FileExistsError where it is there."""
    _fs(path).pipe_file(_key(path), content, mode="create")


def _put(path: Path, content: bytes) -> None:
    if _protocol(path) in _PUTS_WHOLE:
        _fs(path).pipe_file(_key(path), content)
        return
    temporary = f"{_key(path)}.tmp"
    _fs(path).pipe_file(temporary, content)
    _fs(path).mv(temporary, _key(path))


def _fs(path: Any) -> Any:
    return path.fs


def _key(path: Any) -> str:
    return path.path


def _protocol(path: Any) -> str:
    return path.protocol

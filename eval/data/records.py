"""TFRecord files as one random-access array of records, checked, without TensorFlow."""

import glob
import os
import re
import stat
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from dcls_jax.files import as_path, found_by, is_remote, is_url, open_forward, read_range, write_file

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]

_HEADER = struct.Struct("<QI")  # length of the data, masked checksum of the length's eight bytes
_FOOTER = struct.Struct("<I")  # masked checksum of the data
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x78\x01": "zlib", b"\x78\x9c": "zlib", b"\x78\xda": "zlib"}  # by first bytes


class RecordError(ValueError):
    """A damaged record; the message names the file, the record's number in it (from 0) and what is wrong."""


def find_shards(paths: Paths) -> list[Path]:
    """The record files that `paths` means: a file, a glob, a folder (its *.tfrecords), or a list of these.

    A list keeps its order; what a glob or folder finds is in natural order (val-2 before val-10).
    Raises FileNotFoundError, naming the entry, where nothing is found, PermissionError, and ValueError for what is no
    regular file: a pipe, say, which is not there to be read twice.
    """
    entries = [paths] if isinstance(paths, str | PathLike) else paths
    shards = [shard for entry in entries for shard in (_at_url if is_url(entry) else _expand)(os.fspath(entry))]
    if not shards:
        raise FileNotFoundError("no record files given")
    return shards


def _at_url(entry: str) -> list[Path]:
    """As `_expand`."""
    try:
        if not any(sign in entry for sign in "*?["):
            path = as_path(entry)
            if path.is_file():
                return [path]
            entry = f"{entry.rstrip('/')}/*.tfrecords"
        found = sorted(found_by(entry), key=lambda path: _natural(str(path)))
    except Exception as error:  # each store has its own: no network, no credentials, no such bucket
        if isinstance(error, ValueError):
            raise
        raise OSError(f"{entry} cannot be read ({type(error).__name__}: {error})") from error
    if not found:
        raise FileNotFoundError(f"no record files at {entry}")
    return found


def _expand(entry: str) -> list[Path]:
    pattern = entry
    with suppress(FileNotFoundError, NotADirectoryError):  # but not PermissionError, in which a glob sees nothing
        if not stat.S_ISDIR(os.stat(entry).st_mode):
            return [_regular(entry)]
        os.listdir(entry)
        pattern = os.path.join(glob.escape(entry), "*.tfrecords")
    found = sorted(glob.glob(pattern), key=_natural)
    if not found:
        raise FileNotFoundError(f"no record files at {pattern}")
    return [_regular(path) for path in found]


def _regular(path: str) -> Path:
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file, expected one of records")
    return Path(path)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True)
class Shard:
    """One record file: where its readable records begin, and what ended it early, if anything did."""

    path: Path
    size: int  # bytes
    offsets: tuple[int, ...]
    end: int  # of the last of them
    damage: str | None

    @property
    def name(self) -> str:
        return self.path.name

    def extent(self, number: int) -> tuple[int, int]:
        """Where a record begins and ends."""
        following = number + 1
        return self.offsets[number], self.offsets[following] if following < len(self.offsets) else self.end


def index_shard(path: Path) -> Shard:
    """Find the records of one file by reading their headers only; damage that hides the rest ends the index."""
    size, offset, offsets, damage = path.stat().st_size, 0, [], None
    with open_forward(path) as file:
        while offset < size and damage is None:
            file.seek(offset)
            header = file.read(_HEADER.size)
            damage = _header_damage(header, size - offset)
            if damage and not offset and header[:2] in _COMPRESSED:
                damage = (
                    f"the file is compressed by {_COMPRESSED[header[:2]]}, expected plain records; uncompress it first"
                )
            if damage is None:
                offsets.append(offset)
                offset += _HEADER.size + _HEADER.unpack(header)[0] + _FOOTER.size
    where = f"{path}, record {len(offsets)}: {damage}" if damage else None
    return Shard(path, size, tuple(offsets), offset, where)


def _header_damage(header: bytes, remaining: int) -> str | None:
    if len(header) < _HEADER.size:
        return "the file ends inside the record's header"
    length, checksum = _HEADER.unpack(header)
    if _masked_crc(header[:8]) != checksum:
        return "the checksum of the record's length is wrong"
    if _HEADER.size + length + _FOOTER.size > remaining:
        return "the file ends inside the record"
    return None


def _indexed(paths: Sequence[Path]) -> list[Shard]:
    """The index of each file; of URLs several are asked at once, as each answer takes its time."""
    if not any(is_remote(path) for path in paths):
        return [index_shard(path) for path in paths]
    with ThreadPoolExecutor(min(32, len(paths))) as pool:
        return list(pool.map(index_shard, paths))


class Records:
    """The records of many files as one sequence of bytes, in the order of the files: a grain random-access source.

    skip_bad False: RecordError at once if a file is truncated or loses its thread. True: such a file's readable records
    are kept and `damage` says what was lost. A record whose own data is damaged raises RecordError when it is read.
    """

    def __init__(self, paths: Paths, *, skip_bad: bool = False) -> None:
        self.shards = _indexed(find_shards(paths))
        self.damage = [shard.damage for shard in self.shards if shard.damage]
        if self.damage and not skip_bad:
            raise RecordError(self.damage[0])

    @cached_property
    def _places(self) -> list[tuple[Shard, int]]:
        return [(shard, number) for shard in self.shards for number in range(len(shard.offsets))]

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Records({[str(shard.path) for shard in self.shards]})"

    def place(self, index: int) -> tuple[Path, int]:
        """The file of a record and its number there."""
        shard, number = self._places[index]
        return shard.path, number

    def __getitem__(self, index: int) -> bytes:
        shard, number = self._places[index]
        content = read_range(shard.path, *shard.extent(number))
        header = content[: _HEADER.size]
        if damage := _header_damage(header, shard.size - shard.offsets[number]):  # since the file was indexed
            raise RecordError(f"{shard.path}, record {number}: {damage}")
        end = _HEADER.size + _HEADER.unpack(header)[0]
        data, footer = content[_HEADER.size : end], content[end : end + _FOOTER.size]
        if len(footer) < _FOOTER.size or _masked_crc(data) != _FOOTER.unpack(footer)[0]:
            raise RecordError(f"{shard.path}, record {number}: the checksum of the record's data is wrong")
        return data


def write_records(path: str | PathLike[str], records: Iterable[bytes]) -> None:
    """Write a TFRecord file, which replaces one of that name once it is complete."""

    def write(file: BinaryIO) -> None:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + _FOOTER.pack(_masked_crc(length)) + data + _FOOTER.pack(_masked_crc(data)))

    write_file(Path(path), write)


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted by a constant, as TFRecord stores it (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

"""TFRecord files, whole and damaged."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from dcls_jax.eval.data import records
from dcls_jax.eval.data.records import RecordError, Records, find_shards, write_records

CONTENT = [b"first", b"", b"third record"]
THIRD = (12 + 5 + 4) + (12 + 0 + 4)  # where the third record begins


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tfrecords"
    write_records(path, CONTENT)
    return path


def _change(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_round_trip_over_files(shard: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "b.tfrecords", [b"fourth"])
    records = Records([shard, tmp_path / "b.tfrecords"])
    assert [records[i] for i in range(len(records))] == [*CONTENT, b"fourth"]
    assert records.place(3) == (tmp_path / "b.tfrecords", 0)


def test_original_files_checksums_hold(data: Path) -> None:
    records = Records(data / "clickme" / "val-0.tfrecords")
    assert len(records) == 32
    assert all(records[i] for i in range(32))


@pytest.mark.parametrize("size", [THIRD + 3, THIRD + 12, THIRD + 20, THIRD + 27])
def test_truncated_file(shard: Path, size: int) -> None:
    _change(shard, lambda content: content.__delitem__(slice(size, None)))
    with pytest.raises(RecordError, match=r"a\.tfrecords, record 2: the file ends inside the record"):
        Records(shard)
    records = Records(shard, skip_bad=True)
    assert [records[i] for i in range(len(records))] == CONTENT[:2]
    assert len(records.damage) == 1


def test_damaged_length(shard: Path) -> None:
    _change(shard, lambda content: content.__setitem__(THIRD, 200))
    with pytest.raises(RecordError, match=r"a\.tfrecords, record 2: the checksum of the record's length"):
        Records(shard)
    assert len(Records(shard, skip_bad=True)) == 2


def test_damaged_data(shard: Path) -> None:
    _change(shard, lambda content: content.__setitem__(12, 0))
    records = Records(shard)
    assert records[2] == CONTENT[2]
    with pytest.raises(RecordError, match=r"a\.tfrecords, record 0: the checksum of the record's data"):
        records[0]


def test_paths(tmp_path: Path) -> None:
    for name in ("val-10", "val-2"):
        write_records(tmp_path / f"{name}.tfrecords", [b"x"])
    natural = [tmp_path / "val-2.tfrecords", tmp_path / "val-10.tfrecords"]
    assert find_shards(tmp_path) == find_shards(str(tmp_path / "val-*")) == natural
    assert find_shards(natural[::-1]) == natural[::-1]
    assert find_shards(natural[1]) == natural[1:]


def test_a_folder_that_must_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    for function in ("listdir", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(records.os, function, denied)
            with pytest.raises(PermissionError, match=tmp_path.name):
                Records(tmp_path)


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no record files at .*\*\.tfrecords"):
        Records(tmp_path)
    with pytest.raises(FileNotFoundError, match="no record files given"):
        Records([])

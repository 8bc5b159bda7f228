"""Files that appear under their names only when complete."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from dcls_jax.cam import Grid
from dcls_jax.eval import write_records
from dcls_jax.files import write_file


def test_what_cannot_be_written_leaves_what_was_there_and_names_the_file(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("new", "old"):
        (tmp_path / "old").write_text("whole")
        with pytest.raises(OSError, match=rf"No space left on device: '.*{name}'"):
            write_file(tmp_path / name, full)
    with pytest.raises(OSError, match=r"No such file or directory: '.*nowhere/file'"):
        write_file(tmp_path / "nowhere" / "file", full)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("error", [OSError("cannot write mode P"), FileNotFoundError(2, "No such file", "source")])
def test_an_error_that_is_not_of_the_file_keeps_its_words(tmp_path: Path, error: OSError) -> None:
    def fails(_: BinaryIO) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        write_file(tmp_path / "file", fails)
    assert raised.value is error


def test_records_that_fail_halfway_leave_the_old_file(tmp_path: Path) -> None:
    def records() -> Iterator[bytes]:
        yield b"first"
        raise ValueError("no second")

    write_records(tmp_path / "a.tfrecords", [b"old"])
    before = (tmp_path / "a.tfrecords").read_bytes()
    with pytest.raises(ValueError, match="no second"):
        write_records(tmp_path / "a.tfrecords", records())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.tfrecords": before}


def test_a_grid_that_cannot_be_saved_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "maps.png").mkdir()
    with pytest.raises(OSError, match=r"Is a directory: '.*/maps\.png'"):
        Grid([[np.zeros((4, 4), np.uint8)]], ["a"]).save(tmp_path / "maps.png")
    assert [path.name for path in tmp_path.iterdir()] == ["maps.png"]

"""Files that appear under their names only when complete."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears under its name only when complete, and replaces one of that name.

    Until then its name ends in .tmp; only a killed process leaves such a file. OSError names `path`, a full disk's too.
    """
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

"""What is said of a run as it goes: a row of numbers now and then, in a CSV file and for TensorBoard."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from dcls_jax.files import write_bytes


class Log:
    """Rows of `columns`, "step" the first, in the file `path`, and as curves in the folder `tensorboard`, if given.

    A run that goes on from step `start` goes on here too: rows of later steps, which it computes again, are removed.
    Raises OSError where the file cannot be written, and ValueError for one with other columns, or where TensorBoard's
    writer, tensorboardX, is not installed.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, start: int, tensorboard: Path | None = None) -> None:
        self._path, self._columns = path, list(columns)
        rows = [row for row in read(path) if int(row["step"]) <= start] if start else []
        if rows and list(rows[0]) != self._columns:
            raise ValueError(f"{path} has columns {', '.join(rows[0])}, expected {', '.join(columns)}")
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_bytes(path, text.getvalue().encode())
        self._curves = _writer(tensorboard, start) if tensorboard else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._curves is not None:
            self._curves.close()

    def add(self, row: Mapping[str, float]) -> None:
        """Write a row; columns that it has not are left empty."""
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        if self._curves is not None:
            for name, value in row.items():
                if name != "step":
                    self._curves.add_scalar(name, value, int(row["step"]))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a log, without one that a killed run left unfinished; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_text()
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def _writer(folder: Path, start: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is missing, by which curves are written: pip install 'dcls_jax[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=start + 1)

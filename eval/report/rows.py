"""The scores of single records, of all results of a report, as one CSV file: a line for each record and value."""

import csv
import io
from pathlib import Path
from typing import Any, BinaryIO

from dcls_jax.eval.report.collection import Collection, Row
from dcls_jax.eval.status import Status
from dcls_jax.files import write_file

_BEFORE = "metric", "model"
_AFTER = "record", "place", "class", "status", "value", "score"


def write_rows(path: Path, collection: Collection) -> dict[int, tuple[int, int]]:
    """Write the file, UTF-8, and give the first and the last of each result's rows by its number, the heading being 1.

    Columns are metric, model, the labels of all results, record (its number in data order), place, class (-1 where it
    has none), status, value (its name; curves are not among them) and score, empty where the record does not count.
    """
    labels = list(dict.fromkeys(name for row in collection.rows for name in row.result.labels))
    ranges: dict[int, tuple[int, int]] = {}

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow([*_BEFORE, *labels, *_AFTER])
        done = 1
        for row in collection.rows:
            about = row.result.title, row.result.name, *(row.result.labels.get(name, "") for name in labels)
            count = _write(lines, row, about)
            ranges[row.number] = (done + 1, done + count)
            done += count
        text.detach()  # it is closed by whoever opened it

    write_file(path, write)
    return ranges


def _write(lines: Any, row: Row, about: tuple[str, ...]) -> int:
    result, statuses = row.result, list(Status)
    columns = {name: of.tolist() for name, of in result.scores.items() if of.ndim == 1}
    status, classes = result.status.tolist(), result.classes.tolist()
    for record, place in enumerate(row.of.places):
        counts = status[record] == Status.COUNTED.code
        for name, scores in columns.items():
            score = repr(scores[record]) if counts else ""
            lines.writerow([*about, record, place, classes[record], statuses[status[record]], name, score])
    return len(row.of.places) * len(columns)

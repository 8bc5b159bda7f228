"""Finished results folders, as the results that they were written from."""

from pathlib import Path
from typing import Any, NamedTuple

from dcls_jax.eval.metric import Result
from dcls_jax.eval.results import Contents, contents, scores_of
from dcls_jax.files import AnyPath, as_path

_ABOUT = "title", "labels", "counted", "left_out", "bad_records", "seconds"  # of an entry, beside values


class Stored(NamedTuple):
    """A finished evaluation: its results, where each record is, and `run.json`: arguments, data, versions, devices."""

    folder: Path
    results: tuple[Result, ...]
    places: list[str]
    run: dict[str, Any]


def stored(folder: AnyPath) -> Stored:
    """Read a results folder. Raises ResultsError where there is no finished run, or what it wrote cannot be read."""
    found = contents(folder)
    results = tuple(_result(found, variant, entry) for variant, entry in found.summary["results"].items())
    return Stored(as_path(folder), results, found.places, found.run)


def _result(found: Contents, variant: str, entry: dict[str, Any]) -> Result:
    scores = scores_of(found.columns, variant)
    numbers = {name: value for name, value in entry.items() if name not in _ABOUT}
    return Result(
        title=entry["title"],
        name=found.run["arguments"]["name"],
        labels=entry["labels"],
        values={name: float("nan") if value is None else value for name, value in numbers.items()},
        scores=scores.values,
        status=scores.status,
        bad_records=tuple(entry["bad_records"]),
        seconds=entry["seconds"],
        classes=found.columns["label"],
    )

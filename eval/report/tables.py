"""Results side by side, as tables for the terminal."""

from collections.abc import Sequence
from itertools import groupby
from textwrap import fill

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcls_jax.eval.cli import printable
from dcls_jax.eval.metric import Result
from dcls_jax.models.state_dicts import shortened

_NARROW = 6  # characters of a number's column, unless a word of its heading is longer


def results_table(results: Sequence[Result], *, stacked: bool = False) -> Table:
    """One row per result, without what all share; stacked: what tells them apart in one column."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    shared = shared_labels(results)
    told_by = [name for name in labels_of(results[0]) if name not in shared]
    for column in _cells(told_by, stacked):
        table.add_column(column, overflow="fold")
    values = list(dict.fromkeys(name for r in results for name in r.values))
    for column in (
        *(fill(name.replace("_", " "), _NARROW, break_long_words=False) for name in values),
        "counted",
        "left\nout" if stacked else "left out",
    ):
        table.add_column(column, justify="right")
    for r in results:
        numbers = (f"{r.values[name]:.4f}" if name in r.values else "" for name in values)
        reasons = "\n".join(f"{number} {status}" for status, number in r.left_out.items())
        row = *_cells([labels_of(r)[name] for name in told_by], stacked), *numbers, str(r.counted), reasons or "0"
        table.add_row(*map(Text, row))  # names may look like markup
    return table


def _cells(labels: Sequence[str], stacked: bool) -> Sequence[str]:
    return ["\n".join(labels)] if stacked else labels


def labels_of(result: Result) -> dict[str, str]:
    """What tells a result from others, its model first."""
    return {"model": result.name, **result.labels}


def shared_labels(results: Sequence[Result]) -> dict[str, str]:
    """The labels that are alike in all results; of a single one, all but the model."""
    shared = {name: of for name, of in labels_of(results[0]).items() if all(labels_of(r)[name] == of for r in results)}
    return shared if len(results) > 1 else dict(results[0].labels)


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Print a table for each metric, and below them the first ten records that could not be read, and how many more.

    Results of one metric by several presets have a table for each.
    """
    console = Console() if console is None else console
    for (title, _), group in groupby(results, key=lambda result: (result.title, result.labels.get("preset"))):
        alike = list(group)
        console.print(Text(", ".join([title, *map(" ".join, shared_labels(alike).items())]), "italic"))
        table = results_table(alike)
        too_wide = console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width
        console.print(results_table(alike, stacked=True) if too_wide else table)
        console.print()
    for line in shortened(dict.fromkeys(line for r in results for line in r.bad_records)):
        console.print(f"bad: {printable(line)}", style="red", markup=False, highlight=False, soft_wrap=True)

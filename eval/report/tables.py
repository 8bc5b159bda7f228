"""Results side by side, as tables for the terminal."""

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcls_jax.eval.metric import Result
from dcls_jax.eval.results import shortened


def results_table(results: Sequence[Result]) -> Table:
    """One row per result of one metric, narrow enough for 80 columns; labels that all share stand in the title."""
    labels = list(results[0].labels)
    shared = [name for name in labels if len({r.labels[name] for r in results}) == 1]
    title = ", ".join([results[0].title, *(f"{name} {results[0].labels[name]}" for name in shared)])
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    told_by = [name for name in labels if name not in shared]
    for column in ("model", *told_by):
        table.add_column(column, overflow="fold")
    values = list(dict.fromkeys(name for r in results for name in r.values))
    for column in (*(name.replace("_", " ") for name in values), "counted", "left out"):
        table.add_column(column, justify="right")
    for r in results:
        numbers = (f"{r.values[name]:.4f}" if name in r.values else "" for name in values)
        reasons = "\n".join(f"{number} {status}" for status, number in r.left_out.items())
        row = r.name, *(r.labels[name] for name in told_by), *numbers, str(r.counted), reasons or "0"
        table.add_row(*map(Text, row))  # names may look like markup
    return table


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Print a table for each metric, and below them the first ten records that could not be read, and how many more."""
    console = Console() if console is None else console
    for _, of_metric in groupby(results, key=lambda result: result.title):
        console.print(results_table(list(of_metric)))
    for line in shortened([*dict.fromkeys(line for r in results for line in r.bad_records)]):
        console.print(f"bad: {line}", style="red", markup=False, highlight=False, soft_wrap=True)

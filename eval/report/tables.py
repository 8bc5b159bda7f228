"""Results side by side, as tables for the terminal."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcls_jax.eval.cli import printable
from dcls_jax.eval.metric import Result
from dcls_jax.models.state_dicts import shortened

if TYPE_CHECKING:  # it needs this module
    from dcls_jax.eval.report.moved import Moves

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


def print_moves(found: "Moves", console: Console | None = None) -> None:
    """Print which values moved between two collections, how many did not, and which results one alone has."""
    console = Console() if console is None else console
    moved = [it for it in found.values if it.moved]
    kept = len(found.values) - len(moved)
    console.print(f"{len(moved)} of {len(found.values)} values that both have moved, {kept} did not", highlight=False)
    if moved:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for column in ("of", "value"):
            table.add_column(column, overflow="fold")
        for column in ("before", "after", "difference", "records"):
            table.add_column(column, justify="right")
        for it in moved:
            of = it.difference
            interval = it.how if of is None else f"{of.mean:+.4f}\n{of.low:+.4f} to {of.high:+.4f}"
            who = ", ".join(labels_of(it.rows[0].result).values())
            row = f"{it.rows[0].result.title}\n{who}", it.value, f"{it.a:.4f}", f"{it.b:.4f}", interval, str(it.n)
            table.add_row(*map(Text, row))
        console.print(table)
    for line in found.alone:
        console.print(f"in one alone: {printable(line)}", markup=False, highlight=False, soft_wrap=True)


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Print a table for each metric, and below them the first ten records that could not be read, and how many more.

    Results of one metric by several presets have a table for each, wherever in the order they stand.
    """
    console = Console() if console is None else console
    tables: dict[tuple[str, str | None], list[Result]] = {}
    for result in results:
        tables.setdefault((result.title, result.labels.get("preset")), []).append(result)
    for (title, _), alike in tables.items():
        console.print(Text(", ".join([title, *map(" ".join, shared_labels(alike).items())]), "italic"))
        table = results_table(alike)
        too_wide = console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width
        console.print(results_table(alike, stacked=True) if too_wide else table)
        console.print()
    for line in shortened(dict.fromkeys(line for r in results for line in r.bad_records)):
        console.print(f"bad: {printable(line)}", style="red", markup=False, highlight=False, soft_wrap=True)

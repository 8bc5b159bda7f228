"""Results side by side, as a table for the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dcls_jax.eval.clickme import Result


def alignment_table(results: Sequence[Result]) -> Table:
    """One row per result; a line under the table says what the columns of exceptions count, if there are any."""
    table = Table(title="ClickMe human alignment")
    for column in ("model", "method", "protocol"):
        table.add_column(column, overflow="fold")
    for column in ("alignment", "mean Spearman", "images", "skipped", "bad records"):
        table.add_column(column, justify="right")
    for r in results:
        scores = f"{r.alignment:.4f}", f"{r.mean_spearman:.4f}"
        table.add_row(r.name, r.method, r.protocol, *scores, *map(str, (r.images, r.skipped, len(r.bad_records))))
    if any(r.skipped for r in results):
        table.caption = "skipped: constant or non-finite maps, which have no rank correlation and do not count"
    return table


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Print the table of results, and below it each record that could not be read."""
    console = Console() if console is None else console
    console.print(alignment_table(results))
    for line in dict.fromkeys(line for r in results for line in r.bad_records):
        console.print(f"bad: {line}", style="red", markup=False, highlight=False)

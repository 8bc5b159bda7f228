"""Results side by side, as a table for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcls_jax.eval.clickme import Result
from dcls_jax.models.state_dicts import shortened


def alignment_table(results: Sequence[Result]) -> Table:
    """One row per result, narrow enough for 80 columns; a protocol that all share stands in the title."""
    protocols = {r.protocol for r in results}
    shared = f", protocol {protocols.pop()}" if len(protocols) == 1 else ""
    table = Table(title=f"ClickMe human alignment{shared}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model", "method") if shared else ("model", "method", "protocol"):
        table.add_column(column, overflow="fold")
    for column in ("alignment", "Spearman", "images", "skipped", "bad"):
        table.add_column(column, justify="right")
    for r in results:
        names = (Text(r.name), r.method) if shared else (Text(r.name), r.method, r.protocol)  # no markup
        scores = f"{r.alignment:.4f}", f"{r.mean_spearman:.4f}"
        table.add_row(*names, *scores, *map(str, (r.images, r.skipped, len(r.bad_records))))
    if any(r.skipped for r in results):
        table.caption = "skipped: constant or non-finite maps, which have no rank correlation and do not count"
    return table


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Print the table of results, and below it the first ten records that could not be read, and how many more."""
    console = Console() if console is None else console
    console.print(alignment_table(results))
    for line in shortened(dict.fromkeys(line for r in results for line in r.bad_records)):
        console.print(f"bad: {line}", style="red", markup=False, highlight=False, soft_wrap=True)

"""The command that makes a report of results, or sets two side by side."""

from pathlib import Path
from typing import Annotated

import typer

from dcls_jax.eval.cli import at_work, command_line, printable
from dcls_jax.eval.commands.options import command
from dcls_jax.files import as_path


@command
def report(
    results: Annotated[
        list[str] | None, typer.Argument(help="Results folders, or folders that hold such at any depth, or URLs.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            parser=as_path,
            metavar="FILE",
            help="The page; NAME.csv and results.json are written beside it.",
        ),
    ] = Path("report.html"),
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two folders A B instead: list what moved from A to B beyond its interval."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples, of which intervals are made.")] = 10_000,
) -> None:
    """Make one page of results that opens anywhere, with the rows of all records and a model index beside it."""
    if (compare is None) == (not results):
        raise ValueError("expected either RESULTS or --compare A B")
    at_work()
    if compare:
        _compare(*compare, resamples)
    else:
        from dcls_jax.eval.report.files import write_report

        for path in write_report(results or [], out, command=command_line(), resamples=resamples):
            print(printable(str(path)))


def _compare(a: str, b: str, resamples: int) -> None:
    from dcls_jax.eval.report.collection import collect
    from dcls_jax.eval.report.moved import moves
    from dcls_jax.eval.report.tables import print_moves

    print_moves(moves(collect([a]), collect([b]), resamples=resamples))

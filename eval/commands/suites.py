"""The commands that run many evaluations: suites, and the study."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcls_jax.eval.cli import at_work, printable
from dcls_jax.eval.commands.options import command

if TYPE_CHECKING:
    from dcls_jax.eval.suite import Plan


@command
def suite(
    suite: Annotated[
        str, typer.Argument(help="A YAML file, or study, faithfulness, localisation, sanity, sample, demo.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for results; the same command goes on there.")] = Path(
        "results"
    ),
    plan: Annotated[bool, typer.Option("--plan", help="Say what is done and what is left, and run nothing.")] = False,
) -> None:
    """Run many evaluations, models x methods x metrics: what is done is skipped, and each picture is read once."""
    from dcls_jax.eval.report import print_results
    from dcls_jax.eval.suite import Plan, load

    chosen = load(suite)
    at_work()
    planned = Plan(chosen, out, download=not plan)
    _print_plan(planned)
    if not plan:
        print_results([result for found in planned.run() for result in found.results])
        print(printable(f"results: {out}"))


def _print_plan(planned: "Plan") -> None:
    done = [cell for cell in planned.cells if planned.folder(cell)]
    print(printable(f"{planned.suite.title}: {len(done)} of {len(planned.cells)} evaluations are done"))
    for cell in planned.cells:
        if cell not in done:
            words = cell.evaluation.metric, cell.model.called, cell.method, ", ".join(cell.evaluation.presets)
            print(printable("  left: " + " | ".join(word for word in words if word)))

"""The commands that run many evaluations: suites, and the study."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcls_jax.eval.cli import printable
from dcls_jax.eval.commands.options import Distributed, Dtype, Out, command, is_first, start

if TYPE_CHECKING:
    from dcls_jax.eval.suite import Suite


@command
def suite(
    suite: Annotated[
        str,
        typer.Argument(help="A YAML file, or one of the package's: study, faithfulness, localisation, sanity, sample."),
    ],
    out: Out = Path("results"),
    plan: Annotated[bool, typer.Option("--plan", help="Say what is done and what is left, and run nothing.")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="What the models compute in, instead of the file's.")
    ] = None,
    distributed: Distributed = False,
) -> None:
    """Run many evaluations, models x methods x metrics: what is done is skipped, and each picture is read once."""
    from dcls_jax.eval.suite import load

    chosen = load(suite, dtype)
    start(distributed)
    _run(chosen, out, plan=plan)


@command
def study(
    plan: Annotated[
        bool, typer.Option("--plan", help="List what is there and what is missing, and how long it takes here.")
    ] = False,
    sample: Annotated[
        bool, typer.Option("--sample", help="The same on the package's two small models and drawn pictures, offline.")
    ] = False,
    out: Out = Path("results/study"),
    dtype: Dtype = "float32",
    distributed: Distributed = False,
) -> None:
    """The study (arXiv 2408.03164): sixteen models, two methods, both protocols, from what is published."""
    from dcls_jax.eval.suite import study

    start(distributed)
    if plan:
        _print_needs()
        _print_times(dtype)
        return
    if not sample:
        study.fetch_clickme()
    _run(study.suite(sample=sample, dtype=dtype), out)


def _run(suite: "Suite", out: Path, *, plan: bool = False) -> None:
    from dcls_jax.eval.report import print_results
    from dcls_jax.eval.suite import Plan, finish

    planned = Plan(suite, out, download=not plan)
    done = {cell for cell in planned.cells if planned.folder(cell)}
    if is_first():
        print(printable(f"{suite.title}: {len(done)} of {len(planned.cells)} evaluations are done"), flush=True)
    if plan:
        for cell in planned.cells:
            words = cell.evaluation.metric, cell.model.called, cell.method, ", ".join(cell.evaluation.presets)
            print(printable(f"  {'done' if cell in done else 'left'}: " + " | ".join(word for word in words if word)))
        return
    results, page = finish.run(planned)
    if not is_first():
        return
    print_results([result for found in results for result in found.results])
    print(printable(f"results: {out}\nreport: {page}"))


def _print_needs() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dcls_jax.eval.suite import study
    from dcls_jax.models.published import cache_folder

    needs = study.ask_sizes(study.needs())
    missing = [need for need in needs if not need.there]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for column in ("", "MB", "", "from"):
        table.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for need in needs:
        table.add_row(need.name, f"{need.bytes / 1e6:.0f}", "there" if need.there else "missing", need.url)
    Console().print(table)
    print(f"{len(missing)} of {len(needs)} files are missing, about {sum(it.bytes for it in missing) / 1e9:.1f} GB;")
    print(printable(f"`dcls-jax study` fetches them to {cache_folder()}, or put them there"))


def _print_times(dtype: str) -> None:
    """How long the study takes here, model by model as it is measured."""
    from dcls_jax.eval.data.clickme import FILE_RECORDS, STUDY_FILES
    from dcls_jax.eval.suite import study

    pictures = FILE_RECORDS * STUDY_FILES
    print(
        f"\n{pictures} pictures, both methods and protocols, by one batch of each model here, once compiled:",
        flush=True,
    )
    seconds = 0.0
    for model, rate in study.rates(study.models(dtype)):
        seconds += pictures / rate
        print(f"  {model.called:20} {rate:8.1f} images/s {pictures / rate / 60:8.1f} min", flush=True)
    print(f"together {seconds / 3600:.1f} h on this machine, and the time to compile")

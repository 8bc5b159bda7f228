"""The commands that evaluate maps and models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dcls_jax.eval.cli import at_work, printable
from dcls_jax.eval.commands.options import Dcls, Model, NumClasses, Weights, command

evaluations = typer.Typer(no_args_is_help=True, help="Evaluate the maps of a model on a data set.")


@command
def demo(
    out: Annotated[Path, typer.Option(help="The folder for results and pictures.")] = Path("results/demo"),
) -> None:
    """Evaluate two small models on a small sample, both in the package: the whole pipeline, offline, in a minute."""
    from dcls_jax.eval import demo
    from dcls_jax.eval.report import print_results

    at_work()
    print_results(demo.run(out))
    print(printable(f"maps: {out / 'maps.png'}\nresults: {out}"))


@evaluations.command("clickme")
@command
def evaluate_clickme(
    paths: Annotated[list[str], typer.Argument(help="ClickMe's TFRecord files, their folder, or globs.")],
    model: Model,
    weights: Weights = "published",
    dcls: Dcls = False,
    method: Annotated[Literal["grad_cam", "threshold_grad_cam"], typer.Option(help="The study's method.")] = "grad_cam",
    protocol: Annotated[
        Literal["aligned", "published", "both"],
        typer.Option(help="Compare the field that the model sees, or as the study did the whole picture."),
    ] = "both",
    batch_size: Annotated[int, typer.Option(help="Images at a time, over all devices.")] = 32,
    num_classes: NumClasses = 1000,
    out: Annotated[Path, typer.Option(help="The folder for results folders; the same command resumes there.")] = Path(
        "results"
    ),
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count damaged records and go on.")] = False,
) -> None:
    """How well a model's maps agree with people's clicks: Spearman's correlation over the human ceiling."""
    from dcls_jax.eval import clickme
    from dcls_jax.eval.report import print_results
    from dcls_jax.eval.results import check_writable
    from dcls_jax.models import create_model

    at_work()
    name = f"{model}_dcls" if dcls else model
    folder = out / f"clickme-{name}-{method}-{protocol}"
    check_writable(folder)
    built = create_model(model, dcls=dcls, num_classes=num_classes, weights=weights)
    results = clickme.evaluate_protocols(
        built,
        paths,
        clickme.PROTOCOLS if protocol == "both" else (protocol,),
        method=method,
        batch_size=batch_size,
        out=folder,
        skip_bad=skip_bad,
        name=name,
    )
    print_results(results)
    print(printable(f"results: {folder}"))

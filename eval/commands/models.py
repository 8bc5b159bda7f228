"""The commands about models and their weights."""

from pathlib import Path
from typing import Annotated

import typer

from dcls_jax.eval.cli import at_work, printable
from dcls_jax.eval.commands.options import CHECKPOINT, Model, NumClasses, command


@command
def convert(
    source: Annotated[Path, typer.Argument(help=f"A checkpoint: {CHECKPOINT}.")],
    destination: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    model: Model,
    dcls: Annotated[bool, typer.Option("--dcls", help="The checkpoint is of the model with DCLS.")] = False,
    num_classes: NumClasses = 1000,
    swap_positions: Annotated[
        bool,
        typer.Option(
            "--swap-positions", help="Exchange the axes of positions: v0 checkpoints made with dcls 0.0.2 to 0.0.5."
        ),
    ] = False,
) -> None:
    """Convert a published PyTorch checkpoint to an Orbax checkpoint, and check the result."""
    import jax

    from dcls_jax.eval.results import check_writable
    from dcls_jax.models import create_model
    from dcls_jax.models.convert import check_paths, convert

    at_work()
    check_paths(source, destination)
    check_writable(destination.expanduser().parent)
    built = create_model(model, dcls=dcls, num_classes=num_classes)
    check_writable(destination.expanduser().parent, sum(leaf.nbytes for leaf in jax.tree.leaves(built)))
    result = convert(source, destination, built, swap_positions=swap_positions)
    print(f"model               {model}{' with DCLS' if dcls else ''}")
    print(f"parameters          {result.parameters:,}")
    print(f"largest difference  {result.largest_difference} (read back and compared)")
    print(printable(f"written to          {result.destination}"))


@command
def models() -> None:
    """List the models, what they cost, and what they are made for."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dcls_jax import native
    from dcls_jax.methods import ESTIMATED, FASTEST
    from dcls_jax.models.describe import descriptions

    table = Table(title="Models; multiply-adds and explained activation for one image", box=box.SIMPLE_HEAD)
    for column in ("model", "parameters", "GMACs", "activation", "resize, crop"):
        table.add_column(column, justify="right" if column in ("parameters", "GMACs") else "left", no_wrap=True)
    table.add_column("published checkpoint", overflow="fold")
    for it in descriptions():
        table.add_row(
            f"{it.name} --dcls" if it.dcls else it.name,
            f"{it.parameters:,}",
            f"{it.macs / 1e9:.2f}",
            "x".join(map(str, it.activation)),
            f"{it.transform.resize}, {it.transform.crop}",
            it.checkpoint,
        )
    Console().print(table)
    kernels = "the native kernels" if native.available() else "no native kernels, which were not built at install"
    measured = ", ".join(platform for platform in FASTEST if platform not in ESTIMATED)
    print(f"depthwise convolution: on {measured} what was measured fastest for each shape, with {kernels};")
    print(f"on {', '.join(ESTIMATED)} what is so by its compiler's schedules; on other platforms XLA's own")

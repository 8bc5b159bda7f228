"""A published PyTorch checkpoint -> an Orbax checkpoint of the same model, checked by reading it back.

`python convert_weights.py --help` and `dcls-jax convert --help` are the same command.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer
from flax import nnx

from dcls_jax.models import create_model, load_weights, save_weights
from dcls_jax.models.backbone import Backbone


@dataclass(frozen=True)
class Conversion:
    """What was converted: `largest_difference` between what was read and what the new checkpoint gives back."""

    destination: Path
    parameters: int
    largest_difference: float


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    model: Backbone,
    *,
    swap_positions: bool = False,
) -> Conversion:
    """Write the weights in `source` that fit `model` as an Orbax checkpoint at `destination`.

    swap_positions: see `load_weights`. The result takes its final name only after it was read back and found equal.
    Raises FileExistsError where `destination` exists, CheckpointError where the weights do not fit.
    """
    target = Path(destination).expanduser().absolute()
    if target.exists():
        raise FileExistsError(f"{destination} exists; remove it or choose another destination")
    converted = load_weights(model, source, swap_positions=swap_positions)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_weights(converted, partial)
    # Read into the fresh model: its own values would show where the checkpoint has none.
    difference = _largest_difference(converted, load_weights(model, partial))
    if difference != 0:
        raise RuntimeError(f"what was written to {partial} differs by {difference} from {source}")
    partial.rename(target)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(converted, nnx.Param)))
    return Conversion(target, parameters, difference)


def _largest_difference(a: Backbone, b: Backbone) -> float:
    pairs = zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)


def command(
    source: Annotated[Path, typer.Argument(help="A .pth, .pth.tar, .pt or .safetensors file, or an Orbax folder.")],
    destination: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    model: Annotated[str, typer.Option(help="A name that `dcls-jax models` lists.")],
    dcls: Annotated[bool, typer.Option(help="The checkpoint is of the model with DCLS.")] = False,
    num_classes: Annotated[int, typer.Option(help="How many classes the checkpoint has.")] = 1000,
    swap_positions: Annotated[
        bool, typer.Option(help="Exchange the axes of positions: v0 checkpoints made with dcls 0.0.2 to 0.0.5.")
    ] = False,
) -> None:
    """Convert a published PyTorch checkpoint to an Orbax checkpoint, and check the result."""
    built = create_model(model, dcls=dcls, num_classes=num_classes)
    result = convert(source, destination, built, swap_positions=swap_positions)
    print(f"model               {model}{' with DCLS' if dcls else ''}")
    print(f"parameters          {result.parameters:,}")
    print(f"largest difference  {result.largest_difference} (read back and compared)")
    print(f"written to          {result.destination}")


if __name__ == "__main__":
    from dcls_jax.eval.cli import run

    app = typer.Typer(add_completion=False)
    app.command()(command)
    run(app)

"""A published PyTorch checkpoint -> an Orbax checkpoint of the same model, checked by reading it back."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from dcls_jax.models.backbone import Backbone
from dcls_jax.models.checkpoints import load_weights, save_weights


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
    Raises as `check_paths` does, and CheckpointError where the weights do not fit.
    """
    check_paths(source, destination)
    target = Path(destination).expanduser().absolute()
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


def check_paths(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """What can be said before a model is built: FileNotFoundError for `source`, FileExistsError for `destination`."""
    if not Path(source).expanduser().exists():
        raise FileNotFoundError(f"no checkpoint at {source}")
    if Path(destination).expanduser().exists():
        raise FileExistsError(f"{destination} exists; remove it or choose another destination")


def _largest_difference(a: Backbone, b: Backbone) -> float:
    pairs = zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)

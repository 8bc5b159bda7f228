"""A published PyTorch checkpoint -> an Orbax checkpoint of the same model, checked by reading it back."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from dcls_jax.models.backbone import Backbone
from dcls_jax.models.checkpoints import load_weights, state_dict, tree_of
from dcls_jax.models.folders import absolute, write_tree


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

    swap_positions: see `load_weights`. The result takes its name only after it was read back and found equal.
    Raises as `check_paths` does, CheckpointError where the weights do not fit, and OSError where they cannot be
    written, or not be read back.
    """
    check_paths(source, destination)
    target = absolute(destination)
    converted = load_weights(model, source, swap_positions=swap_positions)
    differences = []

    def check(written: Path) -> None:
        # Read into the fresh model: its own values would show where the checkpoint has none.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd weights, as when they were loaded
            found = load_weights(model, written)
        differences.append(_largest_difference(state_dict(converted), state_dict(found)))
        if differences != [0]:
            raise OSError(f"what was written for {target} differs by {differences[0]} from {source}")
        check_paths(source, destination)

    write_tree(tree_of(converted), target, check)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(converted, nnx.Param)))
    return Conversion(target, parameters, differences[0])


def check_paths(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """What can be said before a model is built: FileNotFoundError for `source`, FileExistsError for `destination`.

    Raises NotADirectoryError where what the destination would be in is no folder, PermissionError where it is locked.
    """
    if not absolute(source).exists():
        raise FileNotFoundError(f"no checkpoint at {source}")
    target = absolute(destination)
    if os.path.lexists(target):
        raise FileExistsError(f"{destination} exists; remove it or choose another destination")
    around = next(folder for folder in target.parents if folder.exists())
    if not around.is_dir():
        raise NotADirectoryError(f"{destination} cannot be written: {around} is not a folder")
    if not os.access(around, os.W_OK):
        raise PermissionError(f"{destination} cannot be written: nothing may be written in {around}")


def _largest_difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    return max(_difference(a[name], b[name]) for name in a)


def _difference(x: np.ndarray, y: np.ndarray) -> float:
    """The largest; numbers that are not finite are infinitely far from all but their like."""
    equal = (x == y) | (np.isnan(x) & np.isnan(y))
    distance = np.abs(np.where(equal, 0, x) - np.where(equal, 0, y))
    return float(np.where(np.isnan(distance), np.inf, distance).max())

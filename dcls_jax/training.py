"""How DCLS models are trained: positions learn faster than weights, do not decay, and stay inside their kernel.

The recipe is ConvNeXt-dcls's (github.com/K-H-Ismail/ConvNeXt-dcls, optim_factory.py and engine.py): positions learn
five times faster than the rest and are clamped after every step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dcls_jax.layers import POSITIONS, Positions


def position_labels(params: Any) -> Any:
    """Labels every leaf of a parameter tree "positions" or "rest", by its path.

    Positions are the leaves under a key `P`, and under `SIG`: sigmas are lengths in the same cells.
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = {getattr(entry, "key", getattr(entry, "name", None)) for entry in path}
        return "rest" if names.isdisjoint(POSITIONS) else "positions"

    return jax.tree_util.tree_map_with_path(label, params)


def optimiser(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, position_factor: float = 5.0
) -> optax.GradientTransformation:
    """AdamW in which positions learn `position_factor` times faster and only arrays of two or more axes decay.

    Neither positions nor vectors (biases, normalisation, layer scale) decay.
    learning_rate: a number or an optax schedule.
    """

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)

    def position_rate(step: jax.Array) -> jax.Array:
        return position_factor * (learning_rate(step) if callable(learning_rate) else learning_rate)

    rest = optax.adamw(learning_rate, weight_decay=weight_decay, mask=decays)
    return optax.multi_transform({"rest": rest, "positions": optax.adam(position_rate)}, position_labels)


def clamp_positions(model: nnx.Module) -> None:
    """Clamps every position of a model, in place, to +-(size // 2) of its kernel's sides.

    The package's `clamp_parameters`. Inside a jitted step: merge the updated parameters, clamp, take the state again.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Positions):
            module.clamp()

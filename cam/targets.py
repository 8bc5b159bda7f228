"""What is explained: the scalar of the logits whose gradient makes a map."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# int labels (B,), one-hot or soft labels (B, classes), or logits (classes,) -> scalar, for every image alike
Targets = Array | np.ndarray | list[int] | Callable[[Array], Array]


def scores(logits: Array, targets: Targets) -> Array:
    """The explained scalar of each image: logits (B, classes) -> (B,)."""
    if callable(targets):
        return jax.vmap(targets)(logits)
    targets = jnp.asarray(targets)
    if targets.ndim == 1:
        return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return (logits * targets.astype(logits.dtype)).sum(-1)


def check_targets(targets: Targets, batch: int, classes: int) -> None:
    """Raise ValueError unless the targets are what `scores` takes; labels are also checked for their range."""
    if callable(targets):
        return
    array = np.asarray(targets)
    expected = f"int labels ({batch},), soft labels ({batch}, {classes}) or a function of the logits"
    if np.issubdtype(array.dtype, np.integer) and array.shape == (batch,):
        if array.min() < 0 or array.max() >= classes:
            wrong = array[(array < 0) | (array >= classes)][0]
            raise ValueError(f"targets hold label {wrong}, but the model has classes 0 to {classes - 1}")
    elif array.shape != (batch, classes):
        raise ValueError(f"targets have shape {array.shape} and dtype {array.dtype}, expected {expected}")

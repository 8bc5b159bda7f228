"""What positions need beside gradients: to stay in their kernel, and apart."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.layers import Positions


def clamp_positions(model: nnx.Module) -> None:
    """Clamps every position of a model, in place, to +-(size // 2) of its kernel's sides.

    The package's `clamp_parameters`. Inside a jitted step: merge the updated parameters, clamp, take the state again.
    """
    for positions in _positions(model):
        positions.clamp()


def repulsive_loss(model: nnx.Module) -> Array:
    """How close the elements of a model's kernels are, a float32 scalar in [0, 1]; its square is added to a loss.

    Of each P, (dims, out, in/groups, count), the mean of max(0, 1 - |p_i - p_j|) over kernels and pairs of elements;
    then the mean over the model's P, of which one that several layers share counts once. Elements at one place push
    each other nowhere: the gradient of their distance is 0, as torch.cdist's. 0 for a model without positions.
    Source: ConvNeXt-dcls, utils.py, `get_dcls_loss_rep`.
    """
    each = [_closeness(positions.P[...]) for positions in _positions(model)]
    return jnp.stack(each).mean() if each else jnp.zeros((), jnp.float32)


def _positions(model: nnx.Module) -> list[Positions]:
    """Each once, however many layers share it."""
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, Positions)]


def _closeness(p: Array) -> Array:
    *_, count = p.shape
    if count < 2:
        return jnp.zeros((), p.dtype)
    squares = jnp.square(p[..., :, None] - p[..., None, :]).sum(0)  # (out, in/groups, count, count)
    apart = squares > 0
    # The root of 0 has no slope; so that no gradient goes through it, it is not taken.
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
    pairs = ~jnp.eye(count, dtype=bool)
    closeness = jnp.where(pairs, jax.nn.relu(1 - distance), 0)
    return closeness.sum() / (closeness.size - closeness.size // count)

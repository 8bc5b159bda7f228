"""Batch normalisation as PyTorch trains it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

_EPSILON = 1e-5
_MOMENTUM = 0.9  # PyTorch's 0.1


class BatchNorm(nnx.Module):
    """Normalises each channel over the batch and all pixels: x (B, ..., dim) -> the same shape.

    By the running statistics, or, after `train()`, by the batch's own, which then move the running ones. Unlike
    `nnx.BatchNorm`, and like PyTorch, it puts the unbiased variance into the running one. Statistics are float32.
    """

    def __init__(self, dim: int, *, scale: float = 1.0, rngs: nnx.Rngs):
        del rngs  # nothing here is random; taken as every layer takes it
        self.scale = nnx.Param(jnp.full(dim, scale))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.mean = nnx.BatchStat(jnp.zeros(dim))
        self.var = nnx.BatchStat(jnp.ones(dim))
        self.use_running_average = True

    def __call__(self, x: Array) -> Array:
        """Raises ValueError in training mode for a single value per channel, which has no variance."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = (self.mean[...], self.var[...]) if self.use_running_average else self._of_batch(y)
        y = (y - mean) * (jax.lax.rsqrt(var + _EPSILON) * self.scale[...]) + self.bias[...]
        return y.astype(x.dtype)

    def _of_batch(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance of a batch, of which the running statistics take note."""
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(f"batch normalisation cannot train on one value per channel: x has shape {x.shape}")
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        for running, new in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
            moved = _MOMENTUM * running[...] + (1 - _MOMENTUM) * jax.lax.stop_gradient(new)
            running[...] = moved.astype(running.dtype)
        return mean, var

"""Batch normalisation as PyTorch trains it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from dcls_jax.arrays import along_channels, at_least_float32

_EPSILON = 1e-5
_MOMENTUM = 0.9  # PyTorch's 0.1


class BatchNorm(nnx.Module):
    """Normalises each channel over the batch and all pixels: x (B, ..., dim) -> the same shape.

    By the running statistics, or, after `train()`, by the batch's own, which then move the running ones. Unlike
    `nnx.BatchNorm`, and like PyTorch, it puts the unbiased variance into the running one. Statistics are float32.
    """

    use_running_average: bool

    def __init__(self, dim: int, *, scale: float = 1.0, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        del rngs  # nothing here is random; taken as every layer takes it
        self.dtype = dtype
        self.scale = nnx.Param(jnp.full(dim, scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(dim, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(dim, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(dim, jnp.float32))
        self.use_running_average = True

    def __call__(self, x: Array) -> Array:
        """Raises ValueError in training mode for a single value per channel, which has no variance."""
        y = x.astype(at_least_float32(x))
        mean, var = (self.mean[...], self.var[...]) if self.use_running_average else self._of_batch(y)
        gain = jax.lax.rsqrt(var + _EPSILON) * self.scale[...].astype(var.dtype)
        y = (y - along_channels(mean, y)) * along_channels(gain, y) + along_channels(self.bias[...], y)
        return y.astype(self.dtype or x.dtype)

    def set_view(self, use_running_average: bool | None = None, deterministic: bool | None = None) -> None:
        """For `nnx.view`: normalise by the running statistics (True) or the batch's own, as `train` and `eval` set it.

        use_running_average: whether to. deterministic: the same, where `use_running_average` is not given.
        """
        setting = deterministic if use_running_average is None else use_running_average
        if setting is not None:
            self.use_running_average = setting

    def _of_batch(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance of a batch, of which the running statistics take note."""
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(f"batch normalisation cannot train on one value per channel: x has shape {x.shape}")
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        for running, new in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
            new = jax.lax.stop_gradient(new).astype(running.dtype)
            moved = _MOMENTUM * running[...] + (1 - _MOMENTUM) * new
            running[...] = moved
        return mean, var

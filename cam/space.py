"""Arrays (B, *space, C): means and sums over space, whatever its number of axes, and what each image has of its own."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def axes(x: Array) -> tuple[int, ...]:
    """Those of space."""
    return tuple(range(1, x.ndim - 1))


def mean(x: Array) -> Array:
    """<.>, over space, kept as axes of length 1."""
    return x.mean(axes(x), keepdims=True)


def total(x: Array) -> Array:
    """S(.), over space, kept as axes of length 1."""
    return x.sum(axes(x), keepdims=True)


def like_channels(weights: Array, x: Array) -> Array:
    """Weights (B, C), to multiply x (B, *space, C): (B, 1, ..., 1, C) in its dtype."""
    return jnp.expand_dims(weights.astype(x.dtype), axes(x))


def convolve_axes(x: Array, taps: np.ndarray, border: Literal["reflect", "constant"]) -> Array:
    """x (B, *space, C) convolved along each axis of space with an odd number of taps, beyond its border as `np.pad`."""
    reach = len(taps) // 2

    def along(length: int) -> np.ndarray:
        padded = np.pad(np.eye(length), ((reach, reach), (0, 0)), mode=border)
        return sum(tap * padded[i : i + length] for i, tap in enumerate(taps))

    # Products with small matrices, which hold the border too.
    for axis in axes(x):
        matrix = jnp.asarray(along(x.shape[axis]), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis), precision="highest"), 0, axis)
    return x


def keys_of(key: Array, batch: int) -> Array:
    """A key for each image, (B,): the one given, alike for all, or those given. Old-style uint32 keys are taken too."""
    return jnp.broadcast_to(as_key(key), (batch,))


def as_key(key: Array) -> Array:
    """A key, or several, as jax.random makes them now: old-style uint32 keys (..., 2) become (...)."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def sample_keys(key: Array, batch: int, samples: int) -> Array:
    """Keys of each sample of each image, (samples, B), from one key or one per image. Raises ValueError for none."""
    if samples < 1:
        raise ValueError(f"samples (={samples}) must be at least 1")
    return jax.vmap(partial(jax.random.split, num=samples), out_axes=1)(keys_of(key, batch))


def noise_like(images: Array, keys: Array) -> Array:
    """Standard normal numbers of the images' shape, by a key for each image, (B,)."""
    return jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)


def baseline_of(baseline: ArrayLike, x: Array) -> Array:
    """A baseline for x (B, *space, C): a number, (B, C) for each image and channel, or any shape that broadcasts."""
    given = jnp.asarray(baseline, x.dtype)
    if given.shape == (len(x), x.shape[-1]):
        given = like_channels(given, x)
    return jnp.broadcast_to(given, x.shape)


def rounding(dtype: jnp.dtype) -> float:
    """Of a sum of signed terms, relative to the sum of their magnitudes, what is no more than rounding errors."""
    eps = float(jnp.finfo(dtype).eps)
    return eps if eps > 1e-4 else 84 * eps  # 1e-5 in float32; halves have no such room

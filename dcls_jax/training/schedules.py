"""Learning rates over a run: functions of the step, for optax."""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike


def cosine_schedule(
    peak: float, *, steps: int, warmup_steps: int = 0, minimum: float = 0.0, warmup_start: float = 0.0
) -> optax.Schedule:
    """Linear from `warmup_start` to `peak` over `warmup_steps`, then a cosine over the remaining steps to `minimum`.

    Step 0 has `warmup_start`, step `warmup_steps` the peak, step `steps` and all later ones the minimum.
    Raises ValueError where no step is left for the cosine.
    """
    _check("steps", steps, "warmup_steps", warmup_steps)

    def rate(step: ArrayLike) -> Array:
        after = jnp.asarray(step) - warmup_steps
        cosine = minimum + (peak - minimum) * _half_cosine(after, steps - warmup_steps)
        return jnp.where(after < 0, _linear(step, warmup_steps, warmup_start, peak), cosine)

    return rate


def epoch_schedule(
    peak: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    minimum: float = 0.0,
    warmup_start: float = 0.0,
) -> optax.Schedule:
    """timm's cosine: constant within an epoch, and over all epochs, so that after the warm-up it has already begun.

    Epoch e has warmup_start + (peak - warmup_start) e / warmup_epochs, from e = warmup_epochs on
    minimum + (peak - minimum) (1 + cos(pi e / epochs)) / 2, and from e = epochs on the minimum (timm's cool-down).
    Source: timm/scheduler/cosine_lr.py. Raises ValueError where no epoch is left for the cosine.
    """
    _check("epochs", epochs, "warmup_epochs", warmup_epochs)
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch (={steps_per_epoch}) must be at least 1")
    cosine = cosine_schedule(peak, steps=epochs, minimum=minimum)

    def rate(step: ArrayLike) -> Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        return jnp.where(epoch < warmup_epochs, _linear(epoch, warmup_epochs, warmup_start, peak), cosine(epoch))

    return rate


def _linear(step: ArrayLike, steps: int, start: float, end: float) -> Array:
    return jnp.asarray(start + (end - start) * (step / max(steps, 1)))


def _half_cosine(step: ArrayLike, steps: int) -> Array:
    """(1 + cos(pi step / steps)) / 2, then 0; as a square, of which float32 keeps all digits near the end.

    In optax's form a rate that falls to 1e-6 from 4e-3 is wrong in its fourth digit there.
    """
    left = jnp.clip(steps - step, 0, steps)
    return jnp.sin(0.5 * jnp.pi * (left / steps)) ** 2


def _check(name: str, length: int, warmup_name: str, warmup: int) -> None:
    if not 0 <= warmup < length:
        raise ValueError(f"{warmup_name} (={warmup}) must be at least 0 and below {name} (={length})")

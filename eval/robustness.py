"""How well attributions foretell what small changes do to the output, and how much such changes do to them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.masks import over_masks, stacked_scores
from dcls_jax.cam.model import output_of, versions
from dcls_jax.cam.programs import run
from dcls_jax.cam.space import as_key, sample_keys
from dcls_jax.cam.targets import Targets, scores
from dcls_jax.eval.scoring import CHUNK, check_finite, check_positive, checked_images, predicted

Perturb = Callable[[Array, Array], tuple[Array, Array]]


def infidelity(
    model: Any,
    images: ArrayLike,
    attributions: ArrayLike,
    targets: Targets | None = None,
    *,
    perturb: Perturb,
    samples: int = 10,
    normalise: bool = False,
    key: Array,
    chunk: int = CHUNK,
) -> Array:
    """The mean over samples of (I . phi - (y(x) - y(x - I)))^2, y the logit of a label: (B,) float32.

    attributions: phi, (B, H, W, C) as the images. perturb: (key, images) -> (I, perturbed images), both of the images'
    shape; for attributions that have the image as a factor, I is the share of the way to the baseline. It should last,
    as each new function is compiled anew. normalise: phi is scaled by beta = E[I . phi (y(x) - y(x - I))] / E[(I .
    phi)^2], so that its norm does not matter. key: one, with which perturb sees all images at once, or one per image
    (B,), with which it sees each alone. Raises ValueError for samples below 1, attributions of another shape or not
    finite, and images and targets that do not fit. Yeh et al., arXiv 1901.09392; `infidelity` of captum.
    """
    check_positive(samples=samples, chunk=chunk)
    x, known = checked_images(model, images, targets)
    phi = jnp.asarray(attributions)
    if phi.shape != x.shape:
        raise ValueError(f"attributions have shape {phi.shape}, expected that of the images, {x.shape}")
    check_finite("attributions of ", phi)
    fixed = {"perturb": perturb, "samples": samples, "normalise": normalise, "chunk": chunk}
    return run(_infidelity, model, x, phi.astype(jnp.float32), known, as_key(key), **fixed)


def _infidelity(
    model: Any,
    images: Array,
    phi: Array,
    targets: Any,
    key: Array,
    *,
    perturb: Perturb,
    samples: int,
    normalise: bool,
    chunk: int,
) -> Array:
    batch = len(images)
    output, targets = predicted(model, images, targets, chunk)
    y = scores(output, targets)
    keys = sample_keys(key, batch, samples) if key.ndim else jax.random.split(key, samples)

    def alone(key: Array, image: Array) -> Any:
        return jax.tree.map(lambda pair: pair[0], perturb(key, image[None]))

    def sample(indices: Array) -> tuple[Array, Array]:
        one = jax.vmap(alone) if key.ndim else perturb
        difference, perturbed = jax.vmap(one, (0, None))(keys[indices], images)
        foretold = (difference * phi).sum((2, 3, 4))
        return foretold, y - stacked_scores(partial(output_of, model), perturbed, targets)

    foretold, fall = over_masks(sample, samples, batch, chunk)
    if normalise:
        power = (foretold**2).mean(0)
        foretold = foretold * (foretold * fall).mean(0) / jnp.where(power == 0, 1, power)
    return ((foretold - fall) ** 2).mean(0)


def max_sensitivity(
    model: Any,
    images: ArrayLike,
    explain: Callable[..., Array],
    targets: Targets | None = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    key: Array,
    chunk: int = CHUNK,
) -> Array:
    """The largest |phi(x') - phi(x)| / |phi(x)| of samples x' within radius of x in each value: (B,) float32.

    explain: phi, (model, images, targets) -> maps (B, ...), such as a method of `dcls_jax.cam`; it should last, as each
    new function is compiled anew. |.| is the square root of the sum of squares; where phi(x) is 0 the change is not
    divided. key: one, whose noise every image gets alike, or one per image (B,). Raises ValueError for samples below 1,
    a negative radius, and images and targets that do not fit. Yeh et al., arXiv 1901.09392; captum's `sensitivity_max`.
    """
    check_positive(samples=samples, chunk=chunk)
    if radius < 0:
        raise ValueError(f"radius (={radius}) must not be negative")
    x, known = checked_images(model, images, targets)
    return run(_max_sensitivity, model, x, known, key, radius, explain=explain, samples=samples, chunk=chunk)


def _max_sensitivity(
    model: Any, images: Array, targets: Any, key: Array, radius: Array, *, explain: Any, samples: int, chunk: int
) -> Array:
    batch = len(images)
    _, targets = predicted(model, images, targets, chunk)
    keys = sample_keys(key, batch, samples)
    phi = explain(model, images, targets)

    def noise(key: Array) -> Array:
        return jax.random.uniform(key, images.shape[1:], images.dtype, -1, 1)

    def norm(values: Array) -> Array:
        return jnp.sqrt((values.astype(jnp.float32) ** 2).reshape(*values.shape[:2], -1).sum(-1))

    def changes(indices: Array) -> Array:
        near = images + radius * jax.vmap(jax.vmap(noise))(keys[indices])
        near = near.reshape(-1, *images.shape[1:])
        maps = explain(model, near, versions(targets, len(near)))
        return norm(maps.reshape(-1, *phi.shape) - phi)

    (size,) = norm(phi[None])
    return over_masks(changes, samples, batch, chunk).max(0) / jnp.where(size == 0, 1, size)

"""One entrance: a method by its name, a layer by its name, any number of images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.gradient import Model, grad_cam, threshold_grad_cam
from dcls_jax.cam.postprocess import postprocess, resize
from dcls_jax.cam.targets import Targets, check_targets

METHODS: dict[str, Callable[..., Array]] = {
    "grad_cam": grad_cam,
    "threshold_grad_cam": threshold_grad_cam,
}

# How the study (arXiv 2408.03164) presents each method, after a mean over channels.
STUDY: dict[str, dict[str, Any]] = {
    "grad_cam": {"relu": True, "normalise": False},
    "threshold_grad_cam": {"relu": False, "normalise": True, "floor": 0.3},
}


def explain(
    model: Model,
    images: ArrayLike,
    targets: Targets,
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    size: int | tuple[int, int] | None = None,
    chunk: int | None = None,
    **method_options: Any,
) -> Array:
    """Raw signed maps of images (B, H, W, 3): (B, h, w), or (B, *size) resized; compiled once per shape.

    model: a pytree with `features` and `head`, such as an `nnx.Module`. targets: int labels (B,), one-hot or soft
    labels (B, classes), or a function of one image's logits (classes,) -> scalar. chunk: how many images at a time.

    Raises ValueError for an unknown method or layer, images of another rank, and targets that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method (={method!r}) must be one of {', '.join(METHODS)}")
    images = jnp.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images have shape {images.shape}, expected (B, H, W, 3) with B at least 1")
    logits = jax.eval_shape(lambda model, x: model.head(model.features(x)), model, images)
    check_targets(targets, *logits.shape)
    target_function = targets if callable(targets) else None
    labels = None if callable(targets) else jnp.asarray(targets)
    options = tuple(sorted(method_options.items()))
    step = len(images) if chunk is None else min(chunk, len(images))
    maps = []
    for start in range(0, len(images), step):
        # The last chunk is taken from the end, so that every chunk has one shape and compiles once.
        first = min(start, len(images) - step)
        part = None if labels is None else labels[first : first + step]
        chunk_maps = _explain(model, images[first : first + step], part, target_function, method, layer, size, options)
        maps.append(chunk_maps[start - first :])
    return jnp.concatenate(maps)


@partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _explain(
    model: Model,
    images: Array,
    labels: Array | None,
    target_function: Callable[[Array], Array] | None,
    method: str,
    layer: str | None,
    size: int | tuple[int, int] | None,
    options: tuple[tuple[str, Any], ...],
) -> Array:
    targets: Any = labels if target_function is None else target_function
    maps = METHODS[method](model, images, targets, layer=layer, **dict(options))
    return maps if size is None else resize(maps, size)


def study_maps(
    model: Model, images: ArrayLike, labels: Targets, *, method: str = "grad_cam", size: int | None = 224
) -> Array:
    """The study's own maps (arXiv 2408.03164), to the digit: images (B, H, W, 3) -> (B, size, size).

    Mean over channels, then ReLU (grad_cam), or min-max and a floor of 0.3 (threshold_grad_cam), then a bilinear resize
    (size None: none). Only a constant threshold map differs: 0.3 everywhere, where the study has NaN.
    Raises ValueError for a method that the study does not have.
    """
    if method not in STUDY:
        raise ValueError(f"method (={method!r}) is not in the study, which has {', '.join(STUDY)}")
    images = jnp.asarray(images)
    maps = METHODS[method](model, images, labels)
    channels = jax.eval_shape(lambda model, x: model.features(x), model, images).shape[-1]
    return postprocess(maps / channels, size=size, **STUDY[method])

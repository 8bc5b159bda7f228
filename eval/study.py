"""How maps are made and presented for evaluations; those of the study (arXiv 2408.03164) to the digit."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam import METHODS, explain, options_of, postprocess
from dcls_jax.cam.maps import Size
from dcls_jax.cam.model import Model
from dcls_jax.cam.targets import Targets

# After a mean over channels.
STUDY: dict[str, dict[str, Any]] = {
    "grad_cam": {"relu": True, "normalise": False},
    "threshold_grad_cam": {"relu": False, "normalise": True, "floor": 0.3},
}


def raw_study_maps(model: Model, images: ArrayLike, labels: Targets, *, method: str) -> Array:
    """The study's maps before they are presented, a mean over channels: images (B, H, W, 3) -> (B, h, w).

    Raises ValueError for a method that the study does not have.
    """
    if method not in STUDY:
        raise ValueError(f"method (={method!r}) is not in the study, which has {', '.join(STUDY)}")
    maps: Array = METHODS[method](model, jnp.asarray(images), labels, reduce=lambda terms: terms.mean(-1))
    return maps


def study_maps(
    model: Model, images: ArrayLike, labels: Targets, *, method: str = "grad_cam", size: int | None = 224
) -> Array:
    """The study's own maps (arXiv 2408.03164), to the digit: images (B, H, W, 3) -> (B, size, size).

    Mean over channels, then ReLU (grad_cam), or min-max and a floor of 0.3 (threshold_grad_cam), then a bilinear resize
    (size None: none). Only a constant threshold map differs: 0.3 everywhere, where the study has NaN.
    Raises ValueError for a method that the study does not have.
    """
    return postprocess(raw_study_maps(model, images, labels, method=method), size=size, **STUDY[method])


def raw_maps(model: Model, images: ArrayLike, targets: Targets, *, method: str) -> Array:
    """Maps of a method before they are presented, the study's two as the study makes them: (B, h, w).

    Random numbers, of methods that need them, are the same for every image. Raises ValueError as `explain` does.
    """
    if method in STUDY:
        return raw_study_maps(model, images, targets, method=method)
    options: dict[str, Any] = {"key": jax.random.key(0)} if "key" in options_of(method) else {}
    return explain(model, images, targets, method=method, **options)


def presented(raw: ArrayLike, *, method: str, size: Size | None = None) -> Array:
    """Raw maps (B, h, w) as evaluations take them: the study's two as the study does, others by ReLU and min-max."""
    return postprocess(raw, size=size, **STUDY.get(method, {}))

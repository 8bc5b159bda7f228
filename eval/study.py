"""How the study (arXiv 2408.03164) makes and presents its maps, to the digit."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam import METHODS, postprocess
from dcls_jax.cam.model import Model
from dcls_jax.cam.targets import Targets

# After a mean over channels.
STUDY: dict[str, dict[str, Any]] = {
    "grad_cam": {"relu": True, "normalise": False},
    "threshold_grad_cam": {"relu": False, "normalise": True, "floor": 0.3},
}


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
    maps = METHODS[method](model, jnp.asarray(images), labels, reduce=lambda terms: terms.mean(-1))
    return postprocess(maps, size=size, **STUDY[method])

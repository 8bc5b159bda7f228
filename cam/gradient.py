"""Methods that weigh activations by the gradient of the score to them.

Each takes any model with `features(images)` and `head(activations)`, and returns the raw signed map (B, h, w), summed
over channels as the papers write it. The gradient runs through the head alone. A is the activation (B, h, w, C), g the
gradient of the explained score to it, <.> the mean over space.
"""

from collections.abc import Callable
from typing import Protocol

import jax
from jax import Array

from dcls_jax.cam.targets import Targets, scores


class Model(Protocol):
    """Any pytree that splits into features, (B, H, W, 3) -> (B, h, w, C), and head, (B, h, w, C) -> (B, classes).

    Models that can be cut at a `layer` take its name: features(images, upto=layer), head(activations, start=layer).
    """

    @property
    def features(self) -> Callable[..., Array]: ...

    @property
    def head(self) -> Callable[..., Array]: ...


def activations_and_gradients(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None
) -> tuple[Array, Array]:
    """A and g, both (B, h, w, C), at a layer (None: where the model itself ends its features)."""
    a = model.features(images) if layer is None else model.features(images, upto=layer)

    def score(a: Array) -> Array:
        # Images do not interact in a head, so the gradient of the sum holds each image's own.
        return scores(model.head(a) if layer is None else model.head(a, start=layer), targets).sum()

    return a, jax.grad(score)(a)


def grad_cam(model: Model, images: Array, targets: Targets, *, layer: str | None = None) -> Array:
    """sum_k <g_k> A_k: images (B, H, W, 3) -> raw maps (B, h, w). Grad-CAM, arXiv 1610.02391."""
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return (g.mean((1, 2), keepdims=True) * a).sum(-1)


def threshold_grad_cam(model: Model, images: Array, targets: Targets, *, layer: str | None = None) -> Array:
    """sum_k relu(<g_k> A_k): images (B, H, W, 3) -> raw maps (B, h, w). Threshold-Grad-CAM, arXiv 2408.03164.

    The threshold itself is presentation: `postprocess(maps, relu=False, floor=0.3)`.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return jax.nn.relu(g.mean((1, 2), keepdims=True) * a).sum(-1)

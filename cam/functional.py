"""Any model as two functions: what the methods ask of a model, and an adapter for those that are not written so."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jax import Array

from dcls_jax.cam.pytree import pytree


@pytree
@dataclass(frozen=True)
class FunctionalModel:
    """Two functions and their parameters as a model for every method here: see `from_functions`."""

    params: Any
    features_function: Callable[..., Array] = field(metadata={"static": True})
    head_function: Callable[..., Array] = field(metadata={"static": True})

    @property
    def features(self) -> Callable[..., Array]:
        """Images (B, H, W, 3) -> activations (B, h, w, C)."""
        return partial(self.features_function, self.params)

    @property
    def head(self) -> Callable[..., Array]:
        """Activations (B, h, w, C) -> logits (B, classes)."""
        return partial(self.head_function, self.params)


def from_functions(features: Callable[..., Array], head: Callable[..., Array], params: Any) -> FunctionalModel:
    """A model from features(params, images) -> (B, h, w, C) and head(params, activations) -> (B, classes).

    params: any pytree, such as the variables of a Linen module, whose `apply` fits with `method=`. For cuts at other
    layers, features also takes `upto=` and head `start=`, the layer's name. Explaining many models compiles once if all
    have the same functions: define them once, not as new lambdas per call.
    """
    return FunctionalModel(params, features, head)

"""What is explained: a model, cut in two at a layer, and an adapter for models that are two functions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.arrays import at_least_float32
from dcls_jax.cam.pytree import pytree
from dcls_jax.cam.targets import Targets, scores

Head = Callable[[Array], Any]  # activations -> output


class Model(Protocol):
    """Any pytree that splits into features, images (B, *size, C) -> activations, and head, activations -> output.

    Activations are (B, *space, channels), with any number of axes in space; the output is any pytree of arrays
    (B, ...), such as logits (B, classes). Models that can be cut at a `layer` take its name: features(images,
    upto=layer), head(activations, start=layer). Those of several inputs take the others after the first, in both.
    """

    @property
    def features(self) -> Callable[..., Array]: ...

    @property
    def head(self) -> Callable[..., Any]: ...


class CutError(ValueError):
    """A model that cannot be cut at a layer."""


@runtime_checkable
class SplitsItself(Protocol):
    """A model whose head reads more than the activations: see `from_module`."""

    def split(self, images: Array, layer: str | None, inputs: tuple[Any, ...]) -> tuple[Array, Head]: ...

    def output(self, images: Array, inputs: tuple[Any, ...]) -> Any: ...


@pytree
@dataclass(frozen=True)
class WithInputs:
    """A model of several inputs, all but the first given: pytrees of arrays (B, ...)."""

    model: Any
    inputs: tuple[Any, ...]


def unbound(model: Any) -> tuple[Any, tuple[Any, ...]]:
    """The model itself, and its inputs but the first."""
    return (model.model, model.inputs) if isinstance(model, WithInputs) else (model, ())


def split(model: Any, images: Array, layer: str | None = None) -> tuple[Array, Head]:
    """A (B, *space, C) at a layer (None: where the model itself ends its features), and the rest of the model.

    Both take several versions of the batch at once, (m * B, ...). Flax modules run in evaluation mode. Of a model that
    computes in halves, such as bfloat16, A and the output are float32, as all that is made of them is.
    """
    a, head = _parts(model, images, layer)
    if a.dtype == (wide := in_float32(a)).dtype:
        return a, lambda a: in_float32(head(a))
    return wide, lambda wide: in_float32(head(wide.astype(a.dtype)))


def in_float32(tree: Any) -> Any:
    """A pytree with its arrays of halves, float16 and bfloat16, as float32."""

    def widened(x: Array) -> Array:
        return x.astype(at_least_float32(x)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widened, tree)


def _parts(model: Any, images: Array, layer: str | None) -> tuple[Array, Head]:
    """What `split` gives, in the model's own dtype."""
    model, inputs = unbound(model)
    model = in_evaluation(model)
    if isinstance(model, SplitsItself):
        return model.split(images, layer, inputs)
    upto, start = ({}, {}) if layer is None else ({"upto": layer}, {"start": layer})

    def head(a: Array) -> Any:
        return model.head(a, *versions(inputs, len(a)), **start)

    return model.features(images, *versions(inputs, len(images)), **upto), head


def versions(inputs: Any, rows: int) -> Any:
    """Arrays (B, ...) repeated as a whole to (rows, ...)."""
    return jax.tree.map(lambda x: jnp.tile(x, (rows // len(x), *(1 for _ in x.shape[1:]))), inputs)


def in_evaluation(model: Any) -> Any:
    """The model without dropout and with stored statistics: views of its Flax modules, the rest as it is."""

    def view(part: Any) -> Any:
        if not isinstance(part, nnx.Module):
            return part
        return nnx.view(part, deterministic=True, use_running_average=True, raise_if_not_found=False)

    return jax.tree.map(view, model, is_leaf=lambda part: isinstance(part, nnx.Module))


def output_of(model: Any, images: Array) -> Any:
    """The output of the whole model, a pytree of arrays (B, ...), halves as float32."""
    inner, inputs = unbound(model)
    if isinstance(inner, SplitsItself):
        return in_float32(in_evaluation(inner).output(images, versions(inputs, len(images))))
    a, head = split(model, images)
    return head(a)


def score_gradient(head: Head, targets: Targets) -> Callable[[Array], Array]:
    """A -> g, both (B, *space, C)."""
    # Images do not interact in a head, so the gradient of the sum holds each image's own.
    return jax.grad(lambda a: scores(head(a), targets).sum())


def activations_and_gradients(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None
) -> tuple[Array, Array]:
    """A and g, both (B, *space, C), at a layer (None: where the model itself ends its features)."""
    a, head = split(model, images, layer)
    return a, score_gradient(head, targets)(a)


@pytree
@dataclass(frozen=True)
class FunctionalModel:
    """Two functions and their parameters as a model for every method here: see `from_functions`."""

    params: Any
    features_function: Callable[..., Array] = field(metadata={"static": True})
    head_function: Callable[..., Any] = field(metadata={"static": True})

    @property
    def features(self) -> Callable[..., Array]:
        """Images (B, *size, C) -> activations (B, *space, C)."""
        return partial(self.features_function, self.params)

    @property
    def head(self) -> Callable[..., Any]:
        """Activations (B, *space, C) -> output (B, ...)."""
        return partial(self.head_function, self.params)


def from_functions(features: Callable[..., Array], head: Callable[..., Any], params: Any) -> FunctionalModel:
    """A model from features(params, images) -> (B, *space, C) and head(params, activations) -> output (B, ...).

    params: any pytree, such as the variables of a Linen module, whose `apply` fits with `method=`. For cuts at other
    layers, features also takes `upto=` and head `start=`, the layer's name; for other inputs, both take them after
    their own. Explaining many models compiles once if all have the same functions: define them once, not as new lambdas
    per call.
    """
    return FunctionalModel(params, features, head)

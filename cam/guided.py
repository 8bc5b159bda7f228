"""Guided backpropagation: gradients to the pixels that pass a ReLU only where both input and gradient are positive.

The rule is given to every `jax.nn.relu` of the program (`nnx.relu`, `linen.relu`), that inside a squared ReLU or
StarReLU included. Other activations (ReLU6, CELU, GELU, SiLU) keep their own derivative, as in PyTorch libraries, which
look for `nn.ReLU`: a model without ReLU has its plain gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn, Var

from dcls_jax.cam.gradient import Reduce, grad_cam
from dcls_jax.cam.interpret import contains_relu, evaluate, inner_jaxprs, interpret, is_call, is_relu
from dcls_jax.cam.model import Model, output_of
from dcls_jax.cam.pixels import no_layer
from dcls_jax.cam.targets import Targets, scores


@jax.custom_vjp
def guided_relu(x: Array) -> Array:
    """max(x, 0) whose gradient passes where it and x are positive: any shape. arXiv 1412.6806."""
    return jnp.maximum(x, 0)


guided_relu.defvjp(
    lambda x: (jnp.maximum(x, 0), x),
    lambda x, gradient: (jnp.where(x > 0, jnp.maximum(gradient, 0), 0),),
)


def guide(f: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The same function, of one array, with every ReLU inside guided under differentiation.

    Raises ValueError for a ReLU where it cannot be reached, such as inside `jax.lax.scan` or a `jax.custom_vjp`.
    """

    def guided(x: Array) -> Any:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(x)
        outputs = interpret(closed, [x], _guided_rule, lift=lambda constant: constant)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return guided


def _guided_rule(eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any] | None:
    if is_relu(eqn):
        return [guided_relu(*(x for x, atom in zip(inputs, eqn.invars, strict=True) if isinstance(atom, Var)))]
    if not any(map(contains_relu, inner_jaxprs(eqn))):
        return evaluate(eqn, inputs)
    if not is_call(eqn):
        raise ValueError(f"guided backpropagation cannot reach a ReLU inside {eqn.primitive.name}")
    return None


def guided_backprop(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce | None = None
) -> Array:
    """The guided gradient of the score to the pixels: images (B, *size, C) -> the same shape. arXiv 1412.6806.

    reduce: what makes a map (B, *size) of it, such as `channel_sum`. Raises ValueError as `guide` does, and for any
    layer.
    """
    no_layer("guided_backprop", layer)
    outputs = guide(lambda images: output_of(model, images))
    gradient = jax.grad(lambda images: scores(outputs(images), targets).sum())(images)
    return gradient if reduce is None else reduce(gradient)


def guided_grad_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    interpolation: Literal["linear", "nearest"] = "linear",
    reduce: Reduce | None = None,
) -> Array:
    """Guided backpropagation times the ReLU of Grad-CAM, resized: images (B, *size, C) -> the same shape. 1610.02391.

    The map is not normalised, as in the authors' code; "nearest" is captum's interpolation. reduce: what makes a map
    (B, *size) of it, such as `channel_sum`.
    """
    maps = jax.nn.relu(grad_cam(model, images, targets, layer=layer))
    resized = jax.image.resize(maps, images.shape[:-1], interpolation, antialias=False)
    terms = guided_backprop(model, images, targets) * resized[..., None]
    return terms if reduce is None else reduce(terms)

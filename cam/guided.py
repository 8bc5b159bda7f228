"""Guided backpropagation: gradients to the pixels that pass a ReLU only where both input and gradient are positive.

The rule is given to every max(x, 0) of the program, `jax.nn.relu` or otherwise, the one inside a squared ReLU,
StarReLU or ReLU6 included. Smooth activations (GELU, SiLU) keep their own derivative: a model without ReLU has its
plain gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn, Var

from dcls_jax.cam.gradient import Model, grad_cam
from dcls_jax.cam.interpret import contains_relu, evaluate, inner_jaxprs, interpret, is_call, is_relu
from dcls_jax.cam.targets import Targets, scores


@jax.custom_vjp
def guided_relu(x: Array) -> Array:
    """max(x, 0) whose gradient passes where it and x are positive: any shape. arXiv 1412.6806."""
    return jnp.maximum(x, 0)


guided_relu.defvjp(
    lambda x: (jnp.maximum(x, 0), x),
    lambda x, gradient: (jnp.where(x > 0, jnp.maximum(gradient, 0), 0),),
)


def guide(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function, array -> array, with every ReLU inside guided under differentiation.

    Raises ValueError for a ReLU where it cannot be reached, such as inside `jax.lax.scan` or a `jax.custom_vjp`.
    """

    def guided(x: Array) -> Array:
        return interpret(jax.make_jaxpr(f)(x), [x], _guided_rule, lift=lambda constant: constant)[0]

    return guided


def _guided_rule(eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any] | None:
    if is_relu(eqn):
        return [guided_relu(*(x for x, atom in zip(inputs, eqn.invars, strict=True) if isinstance(atom, Var)))]
    if not any(map(contains_relu, inner_jaxprs(eqn))):
        return evaluate(eqn, inputs)
    if not is_call(eqn):
        raise ValueError(f"guided backpropagation cannot reach a ReLU inside {eqn.primitive.name}")
    return None


def guided_backprop(model: Model, images: Array, targets: Targets) -> Array:
    """The guided gradient of the score to the pixels: images (B, H, W, 3) -> (B, H, W, 3). arXiv 1412.6806.

    Raises ValueError as `guide` does.
    """
    outputs = guide(lambda images: model.head(model.features(images)))
    return jax.grad(lambda images: scores(outputs(images), targets).sum())(images)


def guided_grad_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    interpolation: Literal["linear", "nearest"] = "linear",
) -> Array:
    """Guided backpropagation times the ReLU of Grad-CAM, resized: images (B, H, W, 3) -> (B, H, W, 3). arXiv
    1610.02391.

    The map is not normalised, as in the authors' code; "nearest" is captum's interpolation.
    """
    maps = jax.nn.relu(grad_cam(model, images, targets, layer=layer))
    resized = jax.image.resize(maps, images.shape[:3], interpolation, antialias=False)
    return guided_backprop(model, images, targets) * resized[..., None]

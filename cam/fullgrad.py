"""FullGrad: what the pixels and what every bias of a piecewise linear model gave to the score.

Where a model is piecewise linear, its score is exactly <x, df/dx> + sum over biases <b, df/db>. A bias is whatever the
program adds to an activation that depends on the image. As in the authors' code, the bias of a convolution or linear
layer is one, and so is what a normalisation adds, -mean * scale / deviation + bias: constants that follow one another
without another operation than a factor, at the last of their places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import JaxprEqn

from dcls_jax.cam.interpret import evaluate, interpret, is_call, is_relu
from dcls_jax.cam.maps import resize, unit_range
from dcls_jax.cam.model import Model, output_of
from dcls_jax.cam.pixels import no_layer
from dcls_jax.cam.targets import Targets, scores

# Affine in one operand that depends on the image, element by element.
_AFFINE = {"add", "sub", "mul", "div", "neg", "convert_element_type", "copy"}
# Where a layer meets its weights.
_CONTRACTIONS = {"dot_general", "conv_general_dilated", "depthwise_conv"}
# Linear in one operand: the others, weights and indices, do not depend on the image.
_LINEAR = _CONTRACTIONS | {
    *("gather", "dynamic_slice", "fft", "reduce_sum", "reduce_window_sum"),
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "slice", "rev", "real", "imag", "cumsum"),
}
# Piecewise linear through the origin: each operand depends on the image or is 0.
_HOMOGENEOUS = {
    *("add", "sub", "add_any", "concatenate", "pad", "max", "min", "abs"),
    *("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"),
}
# A number 0 stays one.
_KEEP_ZERO = {"broadcast_in_dim", "convert_element_type", "copy", "reshape"}


@dataclass
class _Node:
    """An array of the program, and what constants added to it since the last operation.

    depends: on the image; zero: known to be 0 throughout; contracted: a layer's output before its bias.
    """

    value: Array
    depends: bool = False
    offset: Array | None = None
    zero: bool = False
    contracted: bool = False


class _Biases:
    """A rule of interpretation that finds the biases, and adds to each place a tap, to take the gradient there."""

    def __init__(self, taps: Sequence[Array] | None = None):
        self.taps = taps
        self.offsets: list[Array] = []

    def rule(self, eqn: JaxprEqn, inputs: list[_Node]) -> list[_Node] | None:
        name, dependent = eqn.primitive.name, [node for node in inputs if node.depends]
        if not dependent:
            zero = name in _KEEP_ZERO and inputs[0].zero
            return [_Node(value, zero=zero) for value in evaluate(eqn, [node.value for node in inputs])]
        if is_call(eqn) and not is_relu(eqn):
            return None
        if len(dependent) == 1 and name in _AFFINE and not (name == "div" and inputs[1].depends):
            return [self._affine(eqn, inputs, dependent[0])]
        values = evaluate(eqn, [self.settle(node) for node in inputs])
        nodes = [_Node(value, depends=_has_gradient(value), contracted=name in _CONTRACTIONS) for value in values]
        if any(node.depends for node in nodes) and not _is_piecewise_linear(eqn, inputs):
            raise ValueError(f"FullGrad is for piecewise linear models; this one has {name} of its activations")
        return nodes

    def _affine(self, eqn: JaxprEqn, inputs: list[_Node], node: _Node) -> _Node:
        """An affine operation maps the offset as it maps the value."""
        offset = node.offset
        if offset is None and eqn.primitive.name in ("add", "sub"):
            offset = jnp.zeros_like(node.value)

        def apply(x: Array) -> Array:
            return evaluate(eqn, [x if other is node else other.value for other in inputs])[0]

        value = apply(node.value)
        if not _has_gradient(value):
            return _Node(value)
        result = _Node(value, depends=True, offset=None if offset is None else apply(offset))
        if node.contracted and eqn.primitive.name == "add":
            self.settle(result)
        return result

    def settle(self, node: _Node) -> Array:
        """The value, once its offset is on record as a bias."""
        if node.offset is not None:
            if self.taps is not None:
                node.value = node.value + self.taps[len(self.offsets)]
            self.offsets.append(node.offset)
            node.offset = None
        return node.value


def _has_gradient(value: Array) -> bool:
    """Comparisons and indices have none: they are piecewise constant."""
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _is_piecewise_linear(eqn: JaxprEqn, inputs: list[_Node]) -> bool:
    name, depends = eqn.primitive.name, [node.depends for node in inputs]
    vanish = [node.depends or node.zero for node in inputs]  # with the image
    if name == "select_n":
        return not depends[0] and all(vanish[1:])
    if name in ("gather", "dynamic_slice"):
        return sum(depends) == depends[0]
    return is_relu(eqn) or (name in _LINEAR and sum(depends) == 1) or (name in _HOMOGENEOUS and all(vanish))


def _lift(constant: Any) -> _Node:
    zero = not isinstance(constant, jax.core.Tracer) and np.ndim(constant) == 0 and constant == 0
    return _Node(constant, zero=bool(zero))


def full_gradients(model: Model, images: Array, targets: Targets) -> list[Array]:
    """All terms of the score: the pixels' (B, *size, C), then each bias's, of the shape (B, ...) of its activation.

    Their sum over everything but B is the score, exactly, whose own bias is the last. images (B, *size, C), float.
    Raises ValueError, naming the operation, for models that are not piecewise linear (GELU, LayerNorm, softmax) or
    whose activations lose the batch axis, and for such targets. arXiv 1905.00780.
    """

    def score(images: Array) -> Array:
        return scores(output_of(model, images), targets)

    def tapped(images: Array, taps: Sequence[Array] | None) -> tuple[Array, list[Array]]:
        biases = _Biases(taps)
        node = interpret(program, [_Node(images, depends=True)], biases.rule, lift=_lift)[0]
        if not node.depends:
            node.offset = node.value
        return biases.settle(node).sum(), biases.offsets

    program = jax.make_jaxpr(score)(images)
    shapes = jax.eval_shape(lambda images: tapped(images, None)[1], images)
    if any(shape.shape[:1] != (len(images),) for shape in shapes):
        raise ValueError("FullGrad needs activations with a leading batch axis wherever a bias is added")
    taps = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    (g, bias_gradients), offsets = jax.grad(tapped, (0, 1), has_aux=True)(images, taps)
    return [images * g, *(offset * gradient for offset, gradient in zip(offsets, bias_gradients, strict=True))]


def full_grad(model: Model, images: Array, targets: Targets, *, layer: str | None = None) -> Array:
    """The magnitudes of all terms with an extent in space, each layer's onto [0, 1], resized and summed.

    images (B, *size, C) -> maps (B, *size), none negative. As in the authors' code (arXiv 1905.00780),
    except that the resize is bilinear with half-pixel centres. Raises ValueError as `full_gradients` does, and for
    any layer.
    """
    no_layer("full_grad", layer)
    size = images.shape[1:-1]
    spatial = [jnp.abs(term) for term in full_gradients(model, images, targets) if term.ndim == images.ndim]
    # Over space and channels together, so that channels keep their proportions.
    every = tuple(range(1, images.ndim))
    maps = (resize(unit_range(term, every).sum(-1), size, space=len(size)) for term in spatial)
    return sum(maps, jnp.zeros(1, images.dtype))

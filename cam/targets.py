"""What is explained: one scalar of a model's output for each image, whose gradient makes a map.

Outputs are any pytree of arrays with a leading batch axis: logits (B, classes), a regression (B,), embeddings (B,
dims), dense logits (B, H, W, classes), or a dictionary of several heads. Targets are

- int labels (B,): the logit of a class; negative logits, contrasts and sums over classes are soft labels (B, classes);
- a function of one image's output, such as `lambda logits: logits[3] - logits[5]`, for every image alike;
- a dataclass below, or any callable that is a pytree, for what differs from image to image. Its arrays have a leading
  batch axis: `Probability(jnp.array([281, 207]))` holds a label for each of two images. It is called once for each
  image, holding that image's entries alone: there `self.labels` is 281, or 207.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr
from jax.tree_util import Partial

from dcls_jax.cam.pytree import pytree

Targets = Array | np.ndarray | list[int] | Callable[[Any], Array]


@pytree
@dataclass(frozen=True)
class Logit:
    """The logit of a class, as the labels (B,) alone; for use inside `Negative`."""

    labels: Array

    def __call__(self, logits: Array) -> Array:
        return logits[self.labels]


@pytree
@dataclass(frozen=True)
class Probability:
    """The softmax probability of a class: labels (B,). Its gradient vanishes where the model is certain."""

    labels: Array

    def __call__(self, logits: Array) -> Array:
        return jax.nn.softmax(logits)[self.labels]


@pytree
@dataclass(frozen=True)
class Sigmoid:
    """The sigmoid probability of a class of a multi-label model: labels (B,)."""

    labels: Array

    def __call__(self, logits: Array) -> Array:
        return jax.nn.sigmoid(logits[self.labels])


@pytree
@dataclass(frozen=True)
class Binary:
    """The logit of a model with one, () or (1,): itself for labels (B,) of 1, minus it for labels of 0."""

    labels: Array

    def __call__(self, logit: Array) -> Array:
        return jnp.where(self.labels == 1, 1, -1) * logit.reshape(())


@pytree
@dataclass(frozen=True)
class LogProbability:
    """The logarithm of the softmax probability of a class: labels (B,)."""

    labels: Array

    def __call__(self, logits: Array) -> Array:
        return jax.nn.log_softmax(logits)[self.labels]


@pytree
@dataclass(frozen=True)
class Rest:
    """Logit plus log-probability of a class: labels (B,). ReST, for Shapley-CAM, arXiv 2501.06261."""

    labels: Array

    def __call__(self, logits: Array) -> Array:
        return (logits + jax.nn.log_softmax(logits))[self.labels]


@pytree
@dataclass(frozen=True)
class Contrast:
    """What tells a class from others: y_c - strength * mean_r y_r, labels (B,), references r (B, count). Finer-CAM.

    weighted: the mean is weighted by the references' softmax probabilities, whose gradient counts, as the authors
    have it (arXiv 2501.11309, FinerWeightedTarget, strength 1). Unweighted it is torch-cam's, whose strength is 0.6.
    """

    labels: Array
    references: Array
    strength: float = field(default=1.0, metadata={"static": True})
    weighted: bool = field(default=False, metadata={"static": True})

    def __call__(self, logits: Array) -> Array:
        differences = logits[self.labels] - self.strength * logits[self.references]
        if not self.weighted:
            return differences.mean()
        # The softmax among the references alone: their probabilities over their sum, which cannot underflow.
        return (jax.nn.softmax(logits[self.references]) * differences).sum()


@pytree
@dataclass(frozen=True)
class Negative:
    """What speaks against: minus the score of other targets (labels, soft labels or a dataclass). Grad-CAM, section
    3.3.

    Minus the map itself only for methods without ReLU.
    """

    targets: Any

    def __call__(self, output: Array) -> Array:
        return -_score(output, self.targets)


@pytree
@dataclass(frozen=True)
class Similarity:
    """Cosine similarity of an embedding (dims,) with a reference: references (B, dims). 0 for a zero vector."""

    references: Array

    def __call__(self, embedding: Array) -> Array:
        squares = (embedding**2).sum() * (self.references**2).sum()
        # The inner `where` keeps the gradient of the square root finite in the branch that is not taken.
        norms = jnp.sqrt(jnp.where(squares > 0, squares, 1))
        return jnp.where(squares > 0, (embedding * self.references).sum() / norms, 0)


@pytree
@dataclass(frozen=True)
class Region:
    """Mean over a region of a class's dense logits (H, W, classes): labels (B,), masks (B, H, W) bool or weights.

    Seg-Grad-CAM, arXiv 2002.11434, which takes the sum. 0 for an empty mask.
    """

    labels: Array
    masks: Array

    def __call__(self, logits: Array) -> Array:
        mask = self.masks.astype(logits.dtype)
        total = mask.sum()
        return (logits[..., self.labels] * mask).sum() / jnp.where(total == 0, 1, total)


@pytree
@dataclass(frozen=True)
class Boxes:
    """How well a detector finds given boxes: the sum of score and overlap of what is nearest to each, if it is near.

    Outputs hold, for each image, "boxes" (N, 4) as (x0, y0, x1, y1), "labels" (N,) and "scores" (N,). boxes (B, n, 4),
    labels (B, n): of class -1 are none, which pad images with fewer. overlap: intersection over union, beyond which the
    nearest box counts, if it has the label. `FasterRCNNBoxScoreTarget` of pytorch-grad-cam.
    """

    boxes: Array
    labels: Array
    overlap: float = field(default=0.5, metadata={"static": True})

    def __call__(self, output: Mapping[str, Array]) -> Array:
        ious = jax.vmap(lambda box: _overlap(box, output["boxes"]))(self.boxes)  # (n, N)
        nearest = ious.argmax(1)
        iou = jnp.take_along_axis(ious, nearest[:, None], 1)[:, 0]
        counts = (iou > self.overlap) & (output["labels"][nearest] == self.labels) & (self.labels >= 0)
        return jnp.where(counts, iou + output["scores"][nearest], 0).sum()


def _overlap(box: Array, boxes: Array) -> Array:
    """Intersection over union of a box (4,) with others (N, 4): (N,)."""

    def area(box: Array) -> Array:
        return jax.nn.relu(box[..., 2] - box[..., 0]) * jax.nn.relu(box[..., 3] - box[..., 1])

    corners = jnp.maximum(box[:2], boxes[:, :2]), jnp.minimum(box[2:], boxes[:, 2:])
    common = area(jnp.concatenate(corners, axis=1))
    union = area(box) + area(boxes) - common
    return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)


def regression(output: Array) -> Array:
    """The output itself, of a model with one number per image: () or (1,) -> ()."""
    return output.reshape(())


def nearest_classes(logits: Array, labels: Array, count: int = 3) -> Array:
    """The classes whose logits are nearest to that of a label: (B, classes), (B,) -> (B, count), nearest first.

    Raises ValueError where there are not so many others.
    """
    if not 0 < count < logits.shape[1]:
        raise ValueError(f"count (={count}) must be 1 to {logits.shape[1] - 1}, the number of other classes")
    own = jnp.arange(logits.shape[1]) == labels[:, None]
    distance = jnp.abs(logits - jnp.take_along_axis(logits, labels[:, None], axis=1))
    return jax.lax.top_k(jnp.where(own, -jnp.inf, -distance), count)[1]


def _score(output: Any, target: Any) -> Array:
    """One image's."""
    if callable(target):
        return target(output)
    return output[target] if target.ndim < output.ndim else (output * target.astype(output.dtype)).sum()


def as_pytree(targets: Targets) -> Any:
    """Targets whose arrays have a leading batch axis; a plain function becomes a pytree without arrays.

    Raises ValueError for a list of functions.
    """
    if callable(targets):
        return Partial(targets) if jax.tree_util.all_leaves([targets]) else targets
    _refuse_functions(targets)
    return jnp.asarray(targets)


def _refuse_functions(targets: Any) -> None:
    if isinstance(targets, list | tuple) and any(map(callable, targets)):
        raise ValueError(
            "targets are a list of functions, expected one for all images, or, for what differs from image to image, "
            "a dataclass whose arrays have a leading batch axis (`dcls_jax.cam.targets`)"
        )


def scores(output: Any, targets: Targets) -> Array:
    """The explained scalar of each image: outputs (B, ...) -> (B,). ValueError: the targets do not give scalars."""
    explained = jax.vmap(_score)(output, as_pytree(targets))
    if getattr(explained, "ndim", None) != 1:
        found, given = (jax.tree.map(lambda x: x.shape[1:], it) for it in (explained, output))
        raise ValueError(f"targets give shape {found} for an output {given}, expected a scalar")
    return explained


@pytree
@dataclass(frozen=True)
class Traced:
    """A function of one image's output, traced: as a program and the arrays in it, (B, ...), one alike per image.

    Two are one to `jax.jit` where their programs are: the same lambda, defined anew for each call, compiles once.
    """

    arrays: tuple[Array, ...]
    program: "_Program" = field(metadata={"static": True})

    def __call__(self, output: Any) -> Array:
        return eval_jaxpr(self.program.closed.jaxpr, self.arrays, *jax.tree.leaves(output))[0]


class _Program:
    """A jaxpr, compared as it is printed, with its derivative, as custom rules are not seen otherwise."""

    def __init__(self, closed: ClosedJaxpr, derivative: ClosedJaxpr):
        self.closed = closed
        self.text = f"{closed.jaxpr} {derivative.jaxpr}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def traced(targets: Any, output: Any) -> Any:
    """Targets as a pytree, a plain function among them as its program for outputs of these shapes (B, ...)."""
    targets = as_pytree(targets)
    if type(targets) is not Partial or jax.tree.leaves(targets):
        return targets
    batch = len(jax.tree.leaves(output)[0])
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), output)
    closed, derivative = (jax.make_jaxpr(f)(one) for f in (targets, jax.grad(targets, allow_int=True)))
    arrays = tuple(jnp.broadcast_to(x, (batch, *jnp.shape(x))) for x in closed.consts)
    return Traced(arrays, _Program(closed, derivative))


def check_targets(targets: Targets, output: Any) -> None:
    """Raise ValueError unless `scores` can take the targets for outputs of these shapes (B, ...), with labels in range.

    Integer arrays inside a dataclass are labels too. Not for traced arrays, which have no values.
    """
    if callable(targets):
        _check_pytree(targets, output)
        return
    _refuse_functions(targets)
    array = np.asarray(targets)
    if not hasattr(output, "shape"):
        shapes = jax.tree.map(lambda x: x.shape, output)
        raise ValueError(f"the model's output is {shapes}: give targets that are a function of one image's")
    shape = output.shape
    is_labels = len(shape) == 2 and array.shape == shape[:1] and np.issubdtype(array.dtype, np.integer)
    if not is_labels and array.shape != shape:
        labels = f"int labels ({shape[0]},), soft labels" if len(shape) == 2 else "soft labels"
        expected = f"{labels} {shape} or a function of the model's output"
        raise ValueError(f"targets have shape {array.shape} and dtype {array.dtype}, expected {expected}")
    if is_labels:
        _check_labels(array, shape[1])


def _check_pytree(targets: Any, output: Any) -> None:
    batch = len(jax.tree.leaves(output)[0])
    classes = output.shape[-1] if len(getattr(output, "shape", ())) > 1 else 1
    for leaf in jax.tree.leaves(as_pytree(targets)):
        if not isinstance(leaf, Array | np.ndarray) or leaf.shape[:1] != (batch,):
            found = leaf.shape if isinstance(leaf, Array | np.ndarray) else type(leaf).__name__
            raise ValueError(f"targets hold {found}, expected arrays with a leading axis of {batch}")
        if hasattr(output, "shape") and jnp.issubdtype(leaf.dtype, jnp.integer):
            _check_labels(np.asarray(leaf), 2 if isinstance(targets, Binary) else classes)
    jax.eval_shape(lambda output: scores(output, targets), output)


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"targets hold label {wrong}, but the model has classes 0 to {classes - 1}")

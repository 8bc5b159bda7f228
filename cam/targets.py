"""What is explained: one scalar of a model's output for each image, whose gradient makes a map.

Outputs are any array with a leading batch axis: logits (B, classes), a regression (B,), embeddings (B, dims), dense
logits (B, H, W, classes). Targets are

- int labels (B,): the logit of a class; negative logits, contrasts and sums over classes are soft labels (B, classes);
- a function of one image's output, such as `lambda logits: logits[3] - logits[5]`, for every image alike; `jax.jit`
  takes it as a static argument;
- a dataclass below, or any callable that is a pytree: its arrays have a leading batch axis and go through `jax.jit` as
  arrays do. Built, it speaks of the batch; called, inside `scores`, of one image and its output.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dcls_jax.cam.pytree import pytree

Targets = Array | np.ndarray | list[int] | Callable[[Array], Array]


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


def _score(output: Array, target: Any) -> Array:
    """One image's."""
    if callable(target):
        return target(output)
    target = jnp.asarray(target)
    return output[target] if target.ndim < output.ndim else (output * target.astype(output.dtype)).sum()


def scores(outputs: Array, targets: Targets) -> Array:
    """The explained scalar of each image: outputs (B, ...) -> (B,). ValueError: the targets do not give scalars."""
    if not is_per_image(targets):
        explained = jax.vmap(lambda output: _score(output, targets))(outputs)
    else:
        explained = jax.vmap(_score)(outputs, targets if callable(targets) else jnp.asarray(targets))
    if explained.shape != outputs.shape[:1]:
        raise ValueError(
            f"targets give shape {explained.shape[1:]} for an output {outputs.shape[1:]}, expected a scalar"
        )
    return explained


def is_per_image(targets: Targets) -> bool:
    """Whether targets hold arrays with a leading batch axis, to be cut with the images; else they are a plain
    function."""
    return not (callable(targets) and jax.tree_util.all_leaves([targets]))


def check_targets(targets: Targets, *shape: int) -> None:
    """Raise ValueError unless `scores` can take the targets for outputs of this shape (B, ...), with labels in range.

    Integer arrays inside a dataclass are labels too. Not for traced arrays, which have no values.
    """
    batch, classes = shape[0], shape[-1] if len(shape) > 1 else 1
    if not callable(targets):
        array = np.asarray(targets)
        is_labels = len(shape) == 2 and array.shape == (batch,) and np.issubdtype(array.dtype, np.integer)
        if not is_labels and array.shape != shape:
            labels = f"int labels ({batch},), soft labels" if len(shape) == 2 else "soft labels"
            expected = f"{labels} {shape} or a function of the model's output"
            raise ValueError(f"targets have shape {array.shape} and dtype {array.dtype}, expected {expected}")
        if is_labels:
            _check_labels(array, classes)
        return
    if is_per_image(targets):
        for leaf in jax.tree.leaves(targets):
            if not isinstance(leaf, Array | np.ndarray) or leaf.shape[:1] != (batch,):
                found = leaf.shape if isinstance(leaf, Array | np.ndarray) else type(leaf).__name__
                raise ValueError(f"targets hold {found}, expected arrays with a leading axis of {batch}")
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                _check_labels(np.asarray(leaf), classes)
    jax.eval_shape(lambda outputs: scores(outputs, targets), jax.ShapeDtypeStruct(shape, jnp.float32))


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"targets hold label {wrong}, but the model has classes 0 to {classes - 1}")

"""What `explain` refuses or warns of, each by name."""

import inspect
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dcls_jax.cam.gradient import Model, activations, head_from
from dcls_jax.cam.targets import Targets, check_targets

Layers = tuple[str | None, ...]


class DeadMapWarning(UserWarning):
    """Some maps are constant and show nothing; `dead_maps` says which."""


@partial(jax.jit, static_argnames="layer")
def _outline(model: Model, images: Array, layer: str | None) -> tuple[Array, Array]:
    """Activation and output at a cut; only ever traced, for their shapes, and that once per shape."""
    a = activations(model, images, layer)
    return a, head_from(model, layer)(a)


def check_model(model: Model, images: Array, layers: Layers) -> None:
    """Raise ValueError unless the model has features and head, the layers, and a grid of activations (B, h, w, C)."""
    if not (callable(getattr(model, "features", None)) and callable(getattr(model, "head", None))):
        name = type(model).__name__
        raise ValueError(
            f"model (a {name}) has no `features` and `head`; `from_functions` makes a model of two functions"
        )
    if not layers:
        raise ValueError("layer is an empty sequence, expected at least one name")
    for layer in layers:
        if layer is not None and not _takes(model.features, "upto"):
            message = f"layer (={layer!r}): the model has one cut only, as its `features` takes no `upto`"
            raise ValueError(f"{message}; use layer=None, or give it named cuts (`from_functions` says how)")
        shape = _outline.eval_shape(model, images, layer)[0].shape
        if len(shape) != 4 or shape[0] != len(images):
            message = f"{_place(layer)} of the model have shape {shape}, expected ({len(images)}, h, w, C)"
            raise ValueError(f"{message}: tokens are to be given as a grid, without a class token")


def check_targets_fit(
    model: Model, images: Array, targets: Targets | None, *, layer: str | None, optional: bool
) -> None:
    """Raise ValueError unless the model's output can be explained by the targets; None can be a prediction, of logits.

    Of traced targets, which have no values, the shapes alone are checked. optional: the method does without targets.
    """
    shape = _outline.eval_shape(model, images, layer)[1].shape
    if targets is None:
        if not optional and len(shape) != 2:
            raise ValueError(f"targets are needed, as the model's output {shape} is not logits (B, classes)")
        return
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(targets)):
        targets = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), targets)
    check_targets(targets, *shape)


def check_maps(model: Model, images: Array, layers: Layers, finite: np.ndarray, dead: np.ndarray) -> None:
    """Raise ValueError for maps that are not finite, warn of dead ones: flags (B, layers) of the raw maps."""
    for layer, good, constant in zip(layers, finite.T, dead.T, strict=True):
        if not good.all():
            bad = np.flatnonzero(~good)
            x = images[bad[:1]]
            values = {"the images themselves are not": x, "the activations there are not": activations(model, x, layer)}
            culprits = [cause for cause, value in values.items() if not jnp.isfinite(value).all()]
            cause = (culprits or ["the method's weights are not"])[0]
            raise ValueError(f"maps of {_listed(bad)} at {_place(layer)} are not finite, as {cause}")
        if constant.any():
            place = f"maps of {_listed(np.flatnonzero(constant))} at {_place(layer)} are constant"
            message = (
                f"{place}: either nothing varies over space there, or the target does not depend on that layer; a head "
                "that reads the class token alone has no path from the other tokens of the last block, so cut earlier"
            )
            warnings.warn(message, DeadMapWarning, stacklevel=3)


def _takes(function: object, name: str) -> bool:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _place(layer: str | None) -> str:
    return "the features" if layer is None else f"layer {layer!r}"


def _listed(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return f"{'image' if len(indices) == 1 else 'images'} {shown}{', ...' if len(indices) > 8 else ''}"

"""What `explain` refuses or warns of, each by name."""

import inspect
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dcls_jax.cam.model import CutError, Head, SplitsItself, output_of, split, unbound
from dcls_jax.cam.targets import Targets, check_targets

Layers = tuple[str | None, ...]


class DeadMapWarning(UserWarning):
    """Some maps have nothing to show: they are constant, or no more than rounding errors, and given as 0."""


def checked_layers(layer: str | Sequence[str] | None) -> Layers:
    """Names of layers, or None for the model's own choice. Raises ValueError for anything else."""
    if layer is None or isinstance(layer, str):
        return (layer,)
    if not isinstance(layer, Sequence) or not layer or not all(isinstance(name, str) for name in layer):
        given = f"={layer!r}" if isinstance(layer, Sequence | int) else f"a {type(layer).__name__}"
        raise ValueError(f"layer ({given}) must be the name of a layer, or several names")
    return tuple(layer)


def outline(model: Any, images: jax.ShapeDtypeStruct, layer: str | None) -> tuple[Any, Any]:
    """Shapes of the activation and of the output at a cut. Raises ValueError where the model cannot give them."""
    inner, _ = unbound(model)
    if layer is not None and not isinstance(inner, SplitsItself) and not _takes(inner.features, "upto"):
        message = f"layer (={layer!r}): the model has one cut only, as its `features` takes no `upto`"
        raise ValueError(f"{message}; use layer=None, or give it named cuts (`from_functions` says how)")

    def run(model: Any, images: Array) -> tuple[Array, Any]:
        a, head = _cut(model, images, layer)
        return a, head(a)

    try:
        a, output = jax.eval_shape(run, model, images)
    except CutError:
        raise
    except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        if layer is not None and repr(layer) in str(error):  # the model's own word on a layer that it does not have
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        expected = "expected (B, *size, C), channels last, as it takes them"
        raise ValueError(f"images have shape {images.shape}, {expected} ({reason})") from error
    _check_activations(a, images, layer)
    batch = {x.shape[:1] for x in jax.tree.leaves(output)}
    if batch != {images.shape[:1]}:
        shapes = jax.tree.map(lambda x: x.shape, output)
        raise ValueError(f"the model's output has shape {shapes}, expected a leading axis of {images.shape[0]}")
    return a, output


def _cut(model: Any, images: Array, layer: str | None) -> tuple[Array, Head]:
    """`split`; at no layer of a model that names no cut itself, where methods see only the pixels, the whole of it."""
    inner, _ = unbound(model)
    if layer is None and isinstance(inner, SplitsItself):
        return images, partial(output_of, model)
    return split(model, images, layer)


def check_splits(model: Any) -> None:
    """Raise ValueError for what is no model."""
    splits = callable(getattr(model, "features", None)) and callable(getattr(model, "head", None))
    if not splits and not isinstance(model, SplitsItself):
        raise ValueError(
            f"model (a {type(model).__name__}) has no `features` and `head`; `from_module` makes a model of a Flax "
            "module, `from_functions` of two functions"
        )


def _check_activations(a: Any, images: jax.ShapeDtypeStruct, layer: str | None) -> None:
    batch = images.shape[0]
    if not hasattr(a, "shape") or len(a.shape) < 3 or a.shape[0] != batch:
        found = f"shape {a.shape}" if hasattr(a, "shape") else f"type {type(a).__name__}"
        raise ValueError(f"{place(layer)} of the model have {found}, expected ({batch}, *space, channels)")
    if len(a.shape) == 4 and len(images.shape) == 4:
        # Only proportions tell a layout: those of the picture, to a cell.
        def alike(height: int, width: int) -> bool:
            return abs(height * images.shape[2] - width * images.shape[1]) <= max(images.shape[1:3])

        if alike(*a.shape[2:]) and not alike(*a.shape[1:3]):
            raise ValueError(
                f"{place(layer)} of the model have shape {a.shape}, which looks like channels first; expected "
                f"({batch}, h, w, channels)"
            )


def check_targets_fit(targets: Targets | None, output: Any, *, optional: bool) -> None:
    """Raise ValueError unless a model's output can be explained by the targets; None can be a prediction, of logits.

    Of traced targets, which have no values, the shapes alone are checked. optional: the method does without targets.
    """
    if targets is None:
        if not optional and not is_logits(output):
            shapes = jax.tree.map(lambda x: x.shape, output)
            raise ValueError(f"targets are needed, as the model's output {shapes} is not logits (B, classes)")
        return
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(targets)):
        targets = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), targets)
    check_targets(targets, output)


def is_logits(output: Any) -> bool:
    """Whether an output is one array (B, classes)."""
    return len(getattr(output, "shape", ())) == 2


def check_maps(
    model: Any, images: Array, names: Sequence[tuple[str, str | None]], finite: np.ndarray, dead: np.ndarray
) -> None:
    """Raise ValueError for maps that are not finite, warn of dead ones: flags (B, maps), names: of method and layer."""
    for (method, layer), good, nothing in zip(names, finite.T, dead.T, strict=True):
        if not good.all():
            bad = np.flatnonzero(~good)
            x = images[bad[:1]]
            causes = ["the method's weights are not"]
            if not isinstance(model, jax.core.Tracer) and not jnp.isfinite(x).all():
                causes.insert(0, "the images themselves are not")
            elif not jnp.isfinite(_cut(model, images, layer)[0][bad[0]]).all():
                causes.insert(0, "the activations there are not")
            raise ValueError(f"maps of {listed(bad)} by {method} at {place(layer)} are not finite, as {causes[0]}")
        if nothing.any():
            maps = f"maps of {listed(np.flatnonzero(nothing))} by {method} at {place(layer)} are constant"
            message = (
                f"{maps} but for rounding: either nothing varies over space there, or what the map adds up cancels, "
                "or the target does not depend on that layer; a head that reads the class token alone has no path from "
                "the other tokens of the last block, so cut earlier"
            )
            warnings.warn(message, DeadMapWarning, stacklevel=4)


def _takes(function: object, name: str) -> bool:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def place(layer: str | None) -> str:
    """What messages call a layer."""
    return "the features" if layer is None else f"layer {layer!r}"


def listed(indices: np.ndarray) -> str:
    """What messages call images: "images 0, 3", the first eight of them."""
    shown = ", ".join(map(str, indices[:8]))
    return f"{'image' if len(indices) == 1 else 'images'} {shown}{', ...' if len(indices) > 8 else ''}"

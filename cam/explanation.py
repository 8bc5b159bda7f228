"""One entrance: methods by their names, layers by their names, any number of images."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.checks import Layers, check_maps, check_splits, check_targets_fit, checked_layers, is_logits, outline
from dcls_jax.cam.gradient import channel_sum
from dcls_jax.cam.maps import Combine, Size, checked_size, combine_layers, dead_maps, resize
from dcls_jax.cam.methods import METHODS
from dcls_jax.cam.model import Head, WithInputs, activations_and_gradients, output_of, split
from dcls_jax.cam.programs import as_program, is_traced, leaf_types, run
from dcls_jax.cam.space import as_key, rounding
from dcls_jax.cam.targets import Targets
from dcls_jax.memory import TooLargeError, saying

T = TypeVar("T")


class Method(Protocol):
    """What `explain` asks of a method: (model, images, targets, *, layer=None, ...) -> raw maps (B, *space).

    A method whose targets are optional does not look at them. Of the options, `key` is one random key or one per image
    (B,), and arrays of 2 axes, or as many as images have, hold an entry per image where their first axis is B. A method
    that sums terms takes how as `reduce`, terms (B, *space, C) -> maps: `explain` also sums their magnitudes with it,
    by which it tells a map from rounding errors.
    """

    @property
    def __name__(self) -> str: ...

    def __call__(self, model: Any, images: Array, targets: Any, *, layer: str | None = None) -> Array: ...


# The views of `augment`: each of these brightnesses, as it is and mirrored.
SCALES = (0.9, 1.0, 1.1)


@dataclass(frozen=True)
class _Plan:
    """What is asked of one method; arrays among its options are kept apart."""

    method: Callable[..., Array]
    layers: Layers
    combine: Combine
    augment: bool
    size: Size | None
    options: tuple[tuple[str, Any], ...]


def explain(
    model: Any,
    images: ArrayLike | tuple[Any, ...],
    targets: Targets | None = None,
    *,
    method: str | Method = "grad_cam",
    layer: str | Sequence[str] | None = None,
    combine: Combine = "mean",
    augment: bool = False,
    size: Size | None = None,
    chunk: int | None = None,
    **method_options: Any,
) -> Array:
    """Raw signed maps of images (B, *size, C): (B, *space), or resized (B, *size); compiled once per shape.

    For example:

        model = create_model("convnext_tiny")  # with random weights; weights="published" for those of its authors
        images = preprocess(Image.new("RGB", (500, 375), "tan"), model)  # (1, 224, 224, 3)
        maps = explain(model, images, method="layer_cam", layer="stages.2")  # (1, 14, 14), of the predicted class

    model: a pytree with `features` and `head`, such as an `nnx.Module`, or made by `from_module` or `from_functions`;
    Flax modules run in evaluation mode. images: pictures (B, H, W, C), sounds (B, n, C), volumes (B, d, h, w, C); of a
    model of several inputs a tuple, whose first is explained and whose others are pytrees of arrays (B, ...).
    targets: int labels (B,), one-hot or soft labels (B, classes), a function of one image's output, or a dataclass of
    `targets.py`; None: the class that the model predicts for each image.
    method: a name in METHODS, or a function with their contract (`Method`). layer: where to cut (None: the model's own
    choice), or several names, whose maps `combine_layers` makes one map in [0, 1] by "mean", "max" or "product".
    augment: average over six views, the picture and its mirror at 0.9, 1 and 1.1 of its input values, maps mirrored
    back (pytorch-grad-cam's aug_smooth, on raw maps), and dense outputs (B, H, W, classes) for the targets, which are
    the same for all views. chunk: how many images at a time; unless given all, or as many as the device has room for.
    method_options: of the method; see `Method` for arrays.

    Raises ValueError for an unknown method, layer or option, for images and targets that do not fit, and for maps that
    are not finite; TooLargeError, one too, where the device has no room for a single image. Warns with DeadMapWarning
    of maps that are constant, or no more than rounding errors, which become 0. Called under `jax.jit`, it can check
    shapes alone.
    """
    chosen = {"method": method, "layer": layer, "combine": combine, "augment": augment, "size": size}
    return explain_all(model, images, targets, {"": chosen | method_options}, chunk=chunk)[""]


def explain_all(
    model: Any,
    images: ArrayLike | tuple[Any, ...],
    targets: Targets | None,
    explanations: Mapping[str, Mapping[str, Any]],
    *,
    chunk: int | None = None,
) -> dict[str, Array]:
    """Several explanations of the same images from one program, in which what they have in common is computed once.

    explanations: the arguments of `explain` for each, under the name that its maps get: {"CAM": {"method": "cam"}}.
    Raises ValueError and warns as `explain` does.
    """
    check_splits(model)
    given, *inputs = images if isinstance(images, tuple) else (images,)
    x = jnp.asarray(given)
    if x.ndim < 3 or not len(x):
        raise ValueError(f"images have shape {x.shape}, expected (B, *size, C) with B at least 1, such as (B, H, W, 3)")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk (={chunk}) must be at least 1")
    inputs = jax.tree.map(jnp.asarray, inputs)
    for extra in jax.tree.leaves(inputs):
        if extra.shape[:1] != x.shape[:1]:
            raise ValueError(f"images hold an input of shape {extra.shape}, expected a leading axis of {len(x)}")
    planned = {title: _plan(x.ndim, **chosen) for title, chosen in explanations.items()}
    plans = tuple(plan for plan, _ in planned.values())
    whole = WithInputs(model, tuple(inputs)) if inputs else model
    leaves, structure = jax.tree.flatten(whole)
    output = _checked(structure, leaf_types(whole, leaves), jax.typeof(x), plans)
    check_targets_fit(targets, output, optional=all(_is_optional(plan.method) for plan in plans))
    in_program = is_traced((leaves, x, targets, planned))
    pytree = as_program(targets, output) if targets is not None else None
    arrays = [arrays for _, arrays in planned.values()]

    def cut(chosen: slice) -> tuple[Any, ...]:
        """The chosen images, and what holds an entry for each."""
        rows = itemgetter(chosen)
        seen = model if not inputs else WithInputs(model, jax.tree.map(rows, tuple(inputs)))
        options = [{key: rows(a) if _is_per_image(a, x) else a for key, a in given.items()} for given in arrays]
        return seen, rows(x), jax.tree.map(rows, pytree), options

    def by_chunks(step: int) -> tuple[Any, Any]:
        """Maps and flags of all images, so many at a time."""
        parts = []
        for start in range(0, len(x), step):
            # The last chunk is taken from the end, so that every chunk has one shape and compiles once.
            first = min(start, len(x) - step)
            piece = (whole, x, pytree, arrays) if step == len(x) else cut(slice(first, first + step))
            part = run(_explain, *piece, plans=plans)
            parts.append(part if start == first else jax.tree.map(itemgetter(slice(start - first, None)), part))
        maps, flags = parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return maps, flags if in_program else np.asarray(flags)

    maps, flags = by_chunks(min(chunk, len(x))) if chunk else _as_many_as_fit(by_chunks, len(x))
    if not in_program:
        finite, dead = np.moveaxis(flags, -1, 0)
        if not finite.all() or dead.any():
            names = [(name_of(plan.method), layer) for plan in plans for layer in plan.layers]
            check_maps(whole, x, names, finite, dead)
    return dict(zip(planned, maps, strict=True))


def _as_many_as_fit(by_chunks: Callable[[int], T], images: int) -> T:
    """by_chunks(images), or of half as many images at a time, and so on, where the device has no room for more."""
    step = images
    while True:
        try:
            with saying(f"a chunk of {step}", "masks_at_a_time, the number of methods, or the size of the images"):
                return by_chunks(step)
        except TooLargeError:
            if step == 1:
                raise
            step = -(-step // 2)


def options_of(method: str | Method) -> dict[str, inspect.Parameter]:
    """The options that a method has beside model, images, targets and layer, by name.

    Raises ValueError for an unknown method.
    """
    return {
        name: parameter
        for name, parameter in _parameters(_method(method)).items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "layer"
    }


def name_of(method: Any) -> str:
    """What messages call a method."""
    return getattr(method, "__name__", repr(method))


@lru_cache(256)
def _parameters(method: Callable[..., Array]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(method).parameters


def _is_optional(method: Callable[..., Array]) -> bool:
    """Whether a method does without targets."""
    return [*_parameters(method).values()][2].default is None


def _method(method: str | Method) -> Any:
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"method (={method!r}) must be one of {', '.join(METHODS)}")
    return METHODS[method]


def _plan(
    rank: int,
    *,
    method: str | Method = "grad_cam",
    layer: str | Sequence[str] | None = None,
    combine: Combine = "mean",
    augment: bool = False,
    size: Size | None = None,
    **options: Any,
) -> tuple[_Plan, dict[str, Array]]:
    """The plan, and the options that are arrays, which may change without a new compilation."""
    function = _method(method)
    known = options_of(function)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{name_of(function)} has no option {option!r}; its options are: {', '.join(known) or 'none'}"
            )
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"{name_of(function)} needs the option {option!r}")
    if augment and rank != 4:
        raise ValueError(f"augment (={augment}) mirrors pictures (B, H, W, C); images have {rank} axes")
    arrays = {name: jnp.asarray(value) for name, value in options.items() if isinstance(value, Array | np.ndarray)}
    if "key" in arrays:
        arrays["key"] = as_key(arrays["key"])
    rest = tuple(sorted((name, value) for name, value in options.items() if name not in arrays))
    for option, value in rest:
        if getattr(type(value), "__hash__", None) is None:
            raise ValueError(f"option {option} (={value!r}) must be an array or hashable, such as a tuple for a list")
    if size is not None:
        size = size if isinstance(size, int) else checked_size(size, len(size) if isinstance(size, Sequence) else 1)
        size = size[0] if isinstance(size, tuple) and len(size) == 1 else size
    return _Plan(function, checked_layers(layer), combine, augment, size, rest), arrays


@lru_cache(256)
def _checked(structure: Any, leaves: tuple[Any, ...], image: Any, plans: tuple[_Plan, ...]) -> Any:
    """The shapes of the model's output, once model, images and plans are found to fit: once per shape."""
    model = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves])
    images = jax.ShapeDtypeStruct(image.shape, image.dtype)
    for plan in plans:
        for layer in plan.layers:
            a, output = outline(model, images, layer)
            if plan.size is not None:
                checked_size(plan.size, len(a.shape) - 2)
            if plan.augment and len(a.shape) != 4:
                raise ValueError(f"augment (=True) mirrors maps (B, h, w); activations have shape {a.shape}")
    return output


def _is_per_image(option: Array, images: Array) -> bool:
    """Not by the first axis alone: the height of an image or the channels of a layer may equal the batch by chance."""
    ranks = (1,) if jnp.issubdtype(option.dtype, jax.dtypes.prng_key) else (2, images.ndim)
    return option.ndim in ranks and len(option) == len(images)


def _explain(
    model: Any, images: Array, targets: Any, arrays: Sequence[dict[str, Array]], *, plans: tuple[_Plan, ...]
) -> tuple[list[Array], Array]:
    """Maps of each plan, and for each image, plan and layer, whether the raw map is finite and dead (B, n, 2)."""
    if targets is None:
        output = output_of(model, images)
        targets = output.argmax(-1) if is_logits(output) else None
    made, finite, dead = [], [], []
    for plan, options in zip(plans, arrays, strict=True):
        raw = [_raw_maps(model, images, targets, plan, layer, options) for layer in plan.layers]
        finite += [jnp.isfinite(maps).all(tuple(range(1, maps.ndim))) for maps, _ in raw]
        dead += [nothing for _, nothing in raw]
        maps, space = [maps for maps, _ in raw], raw[0][0].ndim - 1
        if len(maps) > 1:
            made.append(combine_layers(maps, plan.combine, size=plan.size, space=space))
        else:
            made.append(maps[0] if plan.size is None else resize(maps[0], plan.size, space=space))
    return made, jnp.stack([jnp.stack(finite, 1), jnp.stack(dead, 1)], -1)


def _raw_maps(
    model: Any, images: Array, targets: Any, plan: _Plan, layer: str | None, arrays: dict[str, Array]
) -> tuple[Array, Array]:
    """Raw maps (B, *space), and which are dead (B,): these are 0, unless they are not finite."""
    options = arrays | dict(plan.options)

    def views_of(images: Array, mirrored: bool = False) -> tuple[Array, Array]:
        seen = _Mirrored(model) if mirrored else model
        return _measured(plan.method, seen, images, targets, layer, options)

    if plan.augment:
        maps, magnitudes = _average_views(views_of, images)
    else:
        maps, magnitudes = views_of(images)
    space = tuple(range(1, maps.ndim))
    contrast = maps.max(space) - maps.min(space)
    noise = (contrast <= rounding(maps.dtype) * magnitudes.max(space)) & jnp.isfinite(maps).all(space)
    return jnp.where(jnp.expand_dims(noise, space), 0, maps), noise | dead_maps(maps, space=len(space))


def _measured(
    method: Any, model: Any, images: Array, targets: Any, layer: str | None, options: dict[str, Any]
) -> tuple[Array, Array]:
    """Maps (B, *space), and the magnitudes of all that each cell adds up; 0 where a method does not say."""
    reduce = options.get("reduce") or channel_sum
    if hasattr(method, "terms"):
        a, g = activations_and_gradients(model, images, targets, layer=layer)
        return reduce(method.terms(a, g)), channel_sum(method.terms(jnp.abs(a), jnp.abs(g)))
    if "reduce" in options_of(method):
        both = {"reduce": lambda terms: jnp.stack([reduce(terms), channel_sum(jnp.abs(terms))])}
        maps, magnitudes = method(model, images, targets, layer=layer, **options | both)
        return maps, magnitudes
    maps = method(model, images, targets, layer=layer, **options)
    return maps, jnp.zeros((len(maps), *(1,) * (maps.ndim - 1)), maps.dtype)  # XLA would fold a constant of full size


def _average_views(views_of: Callable[..., tuple[Array, Array]], images: Array) -> tuple[Array, Array]:
    scales = jnp.asarray(SCALES, images.dtype)
    upright = jax.lax.map(lambda scale: views_of(scale * images), scales)
    mirror = jax.lax.map(lambda scale: views_of(scale * images[:, :, ::-1], mirrored=True), scales)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[..., ::-1]]).mean(0), upright, mirror)


@dataclass(frozen=True)
class _Mirrored:
    """A model, whose dense outputs (B, H, W, classes) are mirrored back: targets know where things are."""

    model: Any

    def split(self, images: Array, layer: str | None, inputs: tuple[Any, ...]) -> tuple[Array, Head]:
        a, head = split(self.model, images, layer)
        return a, lambda a: _mirror_back(head(a))

    def output(self, images: Array, inputs: tuple[Any, ...]) -> Any:
        return _mirror_back(output_of(self.model, images))


def _mirror_back(output: Any) -> Any:
    return jax.tree.map(lambda y: y[:, :, ::-1] if y.ndim == 4 else y, output)

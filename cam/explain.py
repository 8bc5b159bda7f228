"""One entrance: a method by its name, layers by their names, any number of images."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam import decomposition, fullgrad, gradient, perturbation
from dcls_jax.cam.checks import Layers, check_maps, check_model, check_targets_fit
from dcls_jax.cam.gradient import Model
from dcls_jax.cam.group_cam import group_cam  # not the module of the same name, which the package hides
from dcls_jax.cam.postprocess import Combine, combine_layers, dead_maps, postprocess, resize
from dcls_jax.cam.targets import Targets, is_per_image
from dcls_jax.compilation import compiler_options

Method = Callable[..., Array]

METHODS: dict[str, Method] = {
    method.__name__: method
    for method in (
        gradient.cam,
        gradient.grad_cam,
        gradient.hires_cam,
        gradient.elementwise,
        gradient.xgrad_cam,
        gradient.layer_cam,
        gradient.grad_cam_pp,
        gradient.threshold_grad_cam,
        gradient.integrated_grad_cam,
        gradient.smooth_grad_cam_pp,
        gradient.shapley_cam,
        gradient.finer_cam,
        gradient.random_cam,
        fullgrad.full_grad,
        group_cam,
        perturbation.score_cam,
        perturbation.ss_cam,
        perturbation.is_cam,
        perturbation.ablation_cam,
        decomposition.eigen_cam,
        decomposition.eigen_grad_cam,
        decomposition.seg_eigen_cam,
        decomposition.kpca_cam,
        decomposition.fem,
    )
}

# How the study (arXiv 2408.03164) presents each method, after a mean over channels.
STUDY: dict[str, dict[str, Any]] = {
    "grad_cam": {"relu": True, "normalise": False},
    "threshold_grad_cam": {"relu": False, "normalise": True, "floor": 0.3},
}

# The views of `augment`: each of these brightnesses, as it is and mirrored.
SCALES = (0.9, 1.0, 1.1)


def explain(
    model: Model,
    images: ArrayLike,
    targets: Targets | None = None,
    *,
    method: str | Method = "grad_cam",
    layer: str | Sequence[str] | None = None,
    combine: Combine = "mean",
    augment: bool = False,
    size: int | tuple[int, int] | None = None,
    chunk: int | None = None,
    **method_options: Any,
) -> Array:
    """Raw signed maps of images (B, H, W, 3): (B, h, w), or (B, *size) resized; compiled once per shape.

    model: a pytree with `features` and `head`, such as an `nnx.Module`, or made by `from_functions`.
    targets: int labels (B,), one-hot or soft labels (B, classes), a function of one image's logits, or a dataclass of
    `targets.py`; None: the class that the model predicts for each image.
    method: a name in METHODS, or a function with their contract. layer: where to cut (None: the model's own choice), or
    several names, whose maps `combine_layers` makes one map in [0, 1] by "mean", "max" or "product".
    augment: average over six views, the image and its mirror at 0.9, 1 and 1.1 of its input values, maps mirrored back
    (pytorch-grad-cam's aug_smooth, on raw maps); targets are the same for all views. chunk: how many images at a time.
    method_options: of the method. Arrays among them serve all images alike, except keys (B,) and arrays (B, h, w, c),
    which hold an entry per image.

    Raises ValueError for an unknown method, layer or option, for images and targets that do not fit, and for maps that
    are not finite. Warns with DeadMapWarning of constant maps. Called under `jax.jit`, it can check shapes alone.
    """
    function = _method(method)
    layers: Layers = (layer,) if layer is None or isinstance(layer, str) else tuple(layer)
    images = jnp.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images have shape {images.shape}, expected (B, H, W, 3) with B at least 1")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk (={chunk}) must be at least 1")
    arrays, options = _split_options(function, method_options)
    static, per_image = _split_targets(targets)
    check_model(model, images, layers)
    optional = [*inspect.signature(function).parameters.values()][2].default is None
    check_targets_fit(model, images, targets, layer=layers[-1], optional=optional)
    run = partial(
        _compiled(_is_traced((model, images, targets, arrays))),
        static_target=static,
        method=function,
        layers=layers,
        combine=combine,
        augment=augment,
        size=size,
        options=options,
    )
    step = len(images) if chunk is None else min(chunk, len(images))
    parts = []
    for start in range(0, len(images), step):
        # The last chunk is taken from the end, so that every chunk has one shape and compiles once.
        first = min(start, len(images) - step)
        chosen = slice(first, first + step)
        cut = {
            name: option[chosen] if _is_per_image(option, len(images)) else option for name, option in arrays.items()
        }
        part = run(model, images[chosen], jax.tree.map(itemgetter(chosen), per_image), cut)
        parts.append(jax.tree.map(itemgetter(slice(start - first, None)), part))
    maps, finite, dead = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    if not isinstance(maps, jax.core.Tracer):
        check_maps(model, images, layers, np.asarray(finite), np.asarray(dead))
    return maps


def options_of(method: str | Method) -> dict[str, inspect.Parameter]:
    """The options that a method has beside model, images, targets and layer, by name.

    Raises ValueError for an unknown method.
    """
    parameters = inspect.signature(_method(method)).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "layer"}


@cache
def _compiled(inside: bool) -> Callable[..., tuple[Array, Array, Array]]:
    """`_explain` under jit; inside another jit, whose caller chooses how to compile."""
    static = ("static_target", "method", "layers", "combine", "augment", "size", "options")
    return jax.jit(_explain, static_argnames=static, compiler_options=None if inside else compiler_options())


def _is_traced(arguments: Any) -> bool:
    """Whether arguments, or all that is computed here, belong to a program being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in [jnp.zeros(()), *jax.tree.leaves(arguments)])


def _explain(
    model: Model,
    images: Array,
    per_image: Any,
    arrays: dict[str, Any],
    *,
    static_target: Callable[[Array], Array] | None,
    method: Method,
    layers: Layers,
    combine: Combine,
    augment: bool,
    size: int | tuple[int, int] | None,
    options: tuple[tuple[str, Any], ...],
) -> tuple[Array, Array, Array]:
    """Maps (B, h, w), and for each image and layer, whether its raw map is finite and whether it is dead."""
    targets = static_target or per_image
    if targets is None:
        logits = model.head(model.features(images))
        targets = logits.argmax(-1) if logits.ndim == 2 else None

    def raw_maps(layer: str | None) -> Array:
        def maps_of(images: Array) -> Array:
            return method(model, images, targets, layer=layer, **arrays, **dict(options))

        return _average_views(maps_of, images) if augment else maps_of(images)

    raw = [raw_maps(layer) for layer in layers]
    finite = jnp.stack([jnp.isfinite(maps).all((1, 2)) for maps in raw], 1)
    dead = jnp.stack([dead_maps(maps) for maps in raw], 1)
    if len(layers) > 1:
        return combine_layers(raw, combine, size=size), finite, dead
    return raw[0] if size is None else resize(raw[0], size), finite, dead


def _average_views(maps_of: Callable[[Array], Array], images: Array) -> Array:
    views = jnp.stack([scale * view for view in (images, images[:, :, ::-1]) for scale in SCALES])
    upright, mirrored = jnp.split(jax.lax.map(maps_of, views), 2)
    return jnp.concatenate([upright, mirrored[..., ::-1]]).mean(0)


def _method(method: str | Method) -> Method:
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"method (={method!r}) must be one of {', '.join(METHODS)}")
    return METHODS[method]


def _split_options(method: Method, options: dict[str, Any]) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """Options that hold arrays, which may change without a new compilation, and the others."""
    known = options_of(method)
    name = getattr(method, "__name__", repr(method))
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; its options are: {', '.join(known) or 'none'}")
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"{name} needs the option {option!r}")
    arrays = {name: value for name, value in options.items() if isinstance(value, Array | np.ndarray)}
    rest = tuple(sorted((name, value) for name, value in options.items() if name not in arrays))
    for option, value in rest:
        if getattr(type(value), "__hash__", None) is None:
            raise ValueError(f"option {option} (={value!r}) must be an array or hashable, such as a tuple for a list")
    return arrays, rest


def _is_per_image(option: Any, batch: int) -> bool:
    """Not by the first axis alone: the height of an image or the channels of a layer may equal the batch by chance."""
    rank = 1 if jnp.issubdtype(option.dtype, jax.dtypes.prng_key) else 4
    return option.ndim == rank and len(option) == batch


def _split_targets(targets: Targets | None) -> tuple[Callable[[Array], Array] | None, Any]:
    """A plain function, which is the same for all images, and otherwise what holds an entry per image."""
    if targets is None or callable(targets):
        return (None, targets) if targets is None or is_per_image(targets) else (targets, None)
    return None, jnp.asarray(targets)


def study_maps(
    model: Model, images: ArrayLike, labels: Targets, *, method: str = "grad_cam", size: int | None = 224
) -> Array:
    """The study's own maps (arXiv 2408.03164), to the digit: images (B, H, W, 3) -> (B, size, size).

    Mean over channels, then ReLU (grad_cam), or min-max and a floor of 0.3 (threshold_grad_cam), then a bilinear resize
    (size None: none). Only a constant threshold map differs: 0.3 everywhere, where the study has NaN.
    Raises ValueError for a method that the study does not have.
    """
    if method not in STUDY:
        raise ValueError(f"method (={method!r}) is not in the study, which has {', '.join(STUDY)}")
    images = jnp.asarray(images)
    maps = METHODS[method](model, images, labels)
    channels = jax.eval_shape(lambda model, x: model.features(x), model, images).shape[-1]
    return postprocess(maps / channels, size=size, **STUDY[method])

"""Models by name."""

import dataclasses
import difflib
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dcls_jax.convolution import Precision
from dcls_jax.layers import POSITIONS, DclsConfig
from dcls_jax.models import convnext, fastvit, metaformer, resnet
from dcls_jax.models.backbone import Backbone
from dcls_jax.models.checkpoints import load_weights
from dcls_jax.models.published import Published, Variant, fetch

_FAMILIES: dict[type, dict[str, Variant]] = {
    resnet.ResNet: resnet.VARIANTS,
    convnext.ConvNeXt: convnext.VARIANTS,
    metaformer.MetaFormer: metaformer.VARIANTS,
    fastvit.FastViT: fastvit.VARIANTS,
}
MODELS = {name: (family, variant) for family, variants in _FAMILIES.items() for name, variant in variants.items()}


def list_models() -> list[str]:
    """Every name that `create_model` knows."""
    return list(MODELS)


def variant_of(name: str) -> Variant:
    """What is published of a model. Raises ValueError for an unknown name."""
    return _known(name)[1]


def _known(name: str) -> tuple[type, Variant]:
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, list_models(), n=3, cutoff=0)
        raise ValueError(f"name (={name!r}) is not a model; the nearest are {', '.join(nearest)}")
    return MODELS[name]


def published_file(name: str, *, dcls: bool, weights: str | PathLike[str]) -> Published | None:
    """The published file that `weights` of a model names, by "published" or by the file's own name; None for others."""
    _, variant = MODELS[name]
    published = variant.dcls_checkpoint if dcls else variant.checkpoint
    return published if weights == "published" or Path(weights).name == published.file else None


def create_model(
    name: str,
    *,
    dcls: bool | DclsConfig = False,
    num_classes: int = 1000,
    weights: str | PathLike[str] | None = None,
    new_head: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    precision: Precision = None,
    rngs: nnx.Rngs | None = None,
    **config: Any,
) -> Backbone:
    """A model in evaluation mode.

    name: one of `list_models`.
    dcls: False for standard convolutions, True for the published DCLS setting of that name, or a setting.
    num_classes: outputs of the classifier; 0 for none, and the model gives what was pooled (B, C).
    weights: None (random), a checkpoint (see `load_weights`) or "published" (downloaded; for in_channels other than 3
    kernels of the first layer are summed, for 1, or repeated and scaled, as timm does).
    new_head: with `weights`, leave the checkpoint's classifier out, for other classes; always so without a classifier.
    dtype, param_dtype, precision: in which layers compute and keep their parameters, with Flax's meaning. Positions,
    the construction of kernels, statistics of norms and softmax stay float32.
    rngs: for random weights; `nnx.Rngs(0)` unless given.
    config: depths, dims and other fields of the family's config, for small or new variants.

    Raises ValueError for an unknown name or setting and for weights that do not fit.
    """
    family, variant = _known(name)
    fields = [field.name for field in dataclasses.fields(variant.config)]
    for option in config:
        if option not in fields:
            raise ValueError(f"{option} is not a setting of {name}, which has {', '.join(fields)}")
    config |= {"num_classes": num_classes, "dcls": (variant.dcls if dcls else None) if isinstance(dcls, bool) else dcls}
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}

    def build(rngs: nnx.Rngs | None) -> Backbone:
        model = family(dataclasses.replace(variant.config, **config), rngs=nnx.Rngs(0) if rngs is None else rngs)
        model.set_attributes(dtype=dtype, precision=precision, raise_if_not_found=False)
        return model if param_dtype == jnp.float32 else _kept_in(model, param_dtype)

    def loaded(path: str | PathLike[str]) -> Backbone:
        without_head = new_head or num_classes == 0
        if config.get("drop_path_rate") or (without_head and num_classes):  # something stays random
            return load_weights(build(rngs), path, new_head=without_head)
        return load_weights(nnx.eval_shape(lambda: build(shapes_only())), path, new_head=without_head)

    if weights is None:
        return build(rngs)
    if weights != "published":
        return loaded(weights)
    if not isinstance(dcls, bool):
        raise ValueError(f"weights are published for dcls True or False, not for dcls (={dcls})")
    path = fetch(variant.dcls_checkpoint if dcls else variant.checkpoint)
    channels = config.pop("in_channels", 3)
    model = loaded(path)
    if channels == 3:
        return model
    config["in_channels"] = channels
    return _of_channels(model, nnx.eval_shape(lambda: build(shapes_only())))


def _of_channels(model: Backbone, other: Backbone) -> Backbone:
    """The other model, shapes alone, with the weights of the model, of 3 channels (timm, `adapt_input_conv`)."""
    graphdef, shapes = nnx.split(other)
    weights = dict(nnx.to_flat_state(nnx.state(model)))

    def fitted(path: tuple[Any, ...], shape: nnx.Variable) -> nnx.Variable:
        value, channels = weights[path].get_value(), shape.shape[-2] if len(shape.shape) > 1 else 0
        if value.shape == shape.shape:
            return weights[path]
        if channels == 1:
            return shape.replace(value.sum(-2, keepdims=True))
        return shape.replace(jnp.tile(value, (-(-channels // 3), 1))[..., :channels, :] * (3 / channels))

    return nnx.merge(
        graphdef, nnx.from_flat_state((path, fitted(path, leaf)) for path, leaf in nnx.to_flat_state(shapes))
    )


def _kept_in(model: Backbone, dtype: DTypeLike) -> Backbone:
    """The model with parameters of another dtype, but for positions."""
    graphdef, state = nnx.split(model)

    def cast_to(path: tuple[Any, ...], leaf: nnx.Variable) -> nnx.Variable:
        is_weight = isinstance(leaf, nnx.Param) and path[-1] not in POSITIONS
        return leaf.replace(leaf.get_value().astype(dtype)) if is_weight else leaf

    return nnx.merge(
        graphdef, nnx.from_flat_state((path, cast_to(path, leaf)) for path, leaf in nnx.to_flat_state(state))
    )


def shapes_only() -> nnx.Rngs:
    """Random keys where only shapes count: one for all, as counting them costs seconds while shapes are traced."""
    key = jax.random.key(0)
    return cast(nnx.Rngs, SimpleNamespace(params=lambda: key))

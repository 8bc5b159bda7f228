"""Models by name."""

import dataclasses
import difflib
from collections.abc import Mapping
from os import PathLike
from types import SimpleNamespace
from typing import Any, cast

import jax
from flax import nnx

from dcls_jax.layers import DclsConfig
from dcls_jax.models import convnext, fastvit, metaformer, resnet
from dcls_jax.models.backbone import Backbone
from dcls_jax.models.checkpoints import load_weights
from dcls_jax.models.published import fetch

_FAMILIES: tuple[tuple[type, Mapping[str, Any], Mapping[str, DclsConfig]], ...] = (
    (resnet.ResNet, resnet.VARIANTS, resnet.DCLS),
    (convnext.ConvNeXt, convnext.VARIANTS, convnext.DCLS),
    (metaformer.MetaFormer, metaformer.VARIANTS, metaformer.DCLS),
    (fastvit.FastViT, fastvit.VARIANTS, fastvit.DCLS),
)


def list_models() -> list[str]:
    """Every name that `create_model` knows."""
    return [name for _, variants, _ in _FAMILIES for name in variants]


def published_setting(name: str) -> DclsConfig:
    """The DCLS setting with which a model was published."""
    return next(settings[name] for _, _, settings in _FAMILIES if name in settings)


def create_model(
    name: str,
    *,
    dcls: bool | DclsConfig = False,
    num_classes: int = 1000,
    weights: str | PathLike[str] | None = None,
    rngs: nnx.Rngs | None = None,
    **config: Any,
) -> Backbone:
    """A model in evaluation mode.

    name: one of `list_models`.
    dcls: False for standard convolutions, True for the published DCLS setting of that name, or a setting.
    weights: None (random), a checkpoint (see `load_weights`) or "published" (downloaded).
    rngs: for random weights; `nnx.Rngs(0)` unless given.
    config: depths, dims and other fields of the family's config, for small or new variants.

    Raises ValueError for an unknown name or setting and for weights that do not fit.
    """
    if name not in list_models():
        nearest = difflib.get_close_matches(name, list_models(), n=3, cutoff=0)
        raise ValueError(f"name (={name!r}) is not a model; the nearest are {', '.join(nearest)}")
    family, variants, settings = next(entry for entry in _FAMILIES if name in entry[1])
    base, setting = variants[name], settings[name]
    fields = [field.name for field in dataclasses.fields(base)]
    for option in config:
        if option not in fields:
            raise ValueError(f"{option} is not a setting of {name}, which has {', '.join(fields)}")
    config |= {"num_classes": num_classes, "dcls": (setting if dcls else None) if isinstance(dcls, bool) else dcls}
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}

    def build(rngs: nnx.Rngs | None) -> Backbone:
        return family(dataclasses.replace(base, **config), rngs=nnx.Rngs(0) if rngs is None else rngs)

    if weights is None:
        return build(rngs)
    if weights == "published":
        if not isinstance(dcls, bool):
            raise ValueError(f"weights are published for dcls True or False, not for dcls (={dcls})")
        weights = fetch(name, dcls=dcls)
    if config.get("drop_path_rate"):  # stochastic depth has random state of its own
        return load_weights(build(rngs), weights)
    return load_weights(nnx.eval_shape(lambda: build(shapes_only())), weights)


def shapes_only() -> nnx.Rngs:
    """Random keys where only shapes count: one for all, as counting them costs seconds while shapes are traced."""
    key = jax.random.key(0)
    return cast(nnx.Rngs, SimpleNamespace(params=lambda: key))

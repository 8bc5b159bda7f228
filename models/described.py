"""Checkpoints that say what they are of: `NAME.json` beside `NAME`, with a model's name and settings.

    {"model": "convnext_tiny", "config": {"num_classes": 10, "depths": [1, 1, 2, 1], "dcls": {...}}}

Whatever else the file has is for people.
"""

import dataclasses
import json
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dcls_jax.files import read_bytes, write_bytes
from dcls_jax.layers import DclsConfig
from dcls_jax.models.backbone import Backbone
from dcls_jax.models.checkpoints import save_weights
from dcls_jax.models.create import MODELS, create_model
from dcls_jax.models.folders import place_of
from dcls_jax.models.state_dicts import CheckpointError
from dcls_jax.models.transform import Transform

_KINDS = {"dcls": DclsConfig, "transform": Transform}  # settings that are dataclasses
_TRAINING = "drop_path_rate"  # which no trained model needs


class Description(NamedTuple):
    """A model's name, and the settings with which `create_model` makes it."""

    name: str
    config: dict[str, Any]


def described(weights: str | PathLike[str]) -> Description | None:
    """What is said of a checkpoint, None where nothing is. Raises CheckpointError for another kind of file."""
    file = _file(weights)
    if not file.is_file():
        return None
    try:
        content = json.loads(read_bytes(file))
        name = content["model"]
        config = {key: _value(key, value) for key, value in content["config"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} does not describe a checkpoint ({type(error).__name__}: {error})") from error
    if name not in MODELS:
        raise CheckpointError(f"{file} says model {name!r}, which is none that there is")
    return Description(name, config)


def load_model(weights: str | PathLike[str], **changes: Any) -> Backbone:
    """The model of a checkpoint that has a description, with other settings for some of its own.

    changes: of `create_model`. Raises CheckpointError where there is no description, and what `create_model` raises.
    """
    found = described(weights)
    if found is None:
        raise CheckpointError(f"no {_file(weights)}, which would say what {weights} is a checkpoint of")
    return create_model(found.name, weights=weights, **(found.config | changes))


def save_model(model: Backbone, name: str, folder: str | PathLike[str], **notes: Any) -> None:
    """`save_weights` with a description: `name` is that of `create_model`, notes are JSON values for people.

    Raises what `save_weights` raises.
    """
    save_weights(model, folder)
    content = {"model": name, "config": _settings(model, name), **notes}
    if jax.process_index() == 0:
        write_bytes(_file(folder), (json.dumps(content, indent=1) + "\n").encode())


def _file(weights: str | PathLike[str]) -> Path:
    path = place_of(weights)
    return path.with_suffix(".json") if path.is_file() else path.with_name(f"{path.name}.json")


def _settings(model: Backbone, name: str) -> dict[str, Any]:
    """In what a model's config differs from that of its name, as JSON values."""
    config, usual = vars(model)["config"], MODELS[name][1].config
    differing = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != _TRAINING and getattr(config, field.name) != getattr(usual, field.name)
    }
    return {key: dataclasses.asdict(value) if key in _KINDS and value else value for key, value in differing.items()}


def _value(key: str, value: Any) -> Any:
    """A setting as `create_model` takes it."""
    if key in _KINDS and isinstance(value, dict):
        return _KINDS[key](**{name: tuple(it) if isinstance(it, list) else it for name, it in value.items()})
    return False if value is None else value

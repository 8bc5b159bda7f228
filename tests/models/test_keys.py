"""Every published key listing loads, and nothing that differs from it does."""

import re
from functools import cache

import numpy as np
import pytest
from flax import nnx

from dcls_jax.models import CheckpointError, create_model, list_models, load_weights
from dcls_jax.models.checkpoints import checkpoint_names
from dcls_jax.models.create import shapes_only
from dcls_jax.models.describe import descriptions
from tests.conftest import DATA, slow
from tests.models.small import FAMILIES

NAME = re.compile(r"(\w+?_\w+?|resnet50)(?:_timm)?(_fused)?_(base|dcls)")
LISTINGS = [
    name if NAME.fullmatch(name)[1] in FAMILIES else slow(name)
    for name in sorted(path.stem for path in (DATA / "keys").glob("*.txt"))
]
PARAMETERS = {  # of the originals, reference tables of the study
    ("convnext_tiny", False): 28_589_128,
    ("convnext_tiny", True): 28_587_688,
    ("convnext_small", False): 50_223_688,
    ("convnext_small", True): 50_217_064,
    ("convnext_base", False): 88_591_464,
    ("convnext_base", True): 88_582_632,
    ("fastvit_sa24", False): 21_554_216,
    ("fastvit_sa24", True): 21_523_496,
    ("fastvit_sa36", False): 31_527_464,
    ("fastvit_sa36", True): 31_452_584,
    ("resnet50", False): 25_557_032,
    ("resnet50", True): 24_008_744,
    ("caformer_s18", False): 26_341_656,
    ("caformer_s18", True): 26_350_488,
    ("convformer_s18", False): 26_774_448,
    ("convformer_s18", True): 26_848_432,
}


def listing(name):
    """A state dict as listed, its values numbered by shape, so that shared positions are equal."""
    lines = (DATA / "keys" / f"{name}.txt").read_text().splitlines()
    shapes = {key: eval(shape) for key, shape in (re.match(r"(\S+) (\(.*\)) \w+", line).groups() for line in lines)}
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


def model_for(name):
    """The model of a listing, as shapes only."""
    return shapes(*NAME.fullmatch(name).groups())


@cache
def shapes(model, fused, dcls):
    options = {"fused": True} if fused else {}
    return nnx.eval_shape(lambda: create_model(model, dcls=dcls == "dcls", rngs=shapes_only(), **options))


def test_parameter_counts_are_the_originals():
    """By the kept table, which test_describe.py holds against the models."""
    assert {(it.name, it.dcls): it.parameters for it in descriptions()} == PARAMETERS


@pytest.mark.parametrize("name", LISTINGS)
def test_listing_loads(name):
    load_weights(model_for(name), listing(name))


@pytest.mark.parametrize("name", LISTINGS)
def test_any_difference_is_refused_by_name(name):
    model, state = model_for(name), listing(name)
    names = checkpoint_names(state, model.checkpoint_renames)
    some = dict(list(names.items())[:: max(1, len(state) // 5)])  # the message has every problem
    with pytest.raises(CheckpointError) as missing:
        load_weights(model, {key: value for key, value in state.items() if key not in some.values()})
    with pytest.raises(CheckpointError) as misshapen:
        load_weights(model, state | dict.fromkeys(some.values(), np.zeros((3, 1, 4, 1, 5), np.float32)))
    for ours, key in some.items():
        assert re.search(rf"missing: {re.escape(ours)}$", str(missing.value), re.M)
        assert re.search(rf"misshapen: {re.escape(key)} .*has shape \(3, 1, 4, 1, 5\)", str(misshapen.value))
    with pytest.raises(CheckpointError, match=r"unexpected: extra\.weight"):
        load_weights(model, state | {"extra.weight": np.zeros(3, np.float32)})


@pytest.mark.parametrize("model", [name if name in FAMILIES else slow(name) for name in list_models()])
def test_unequal_shared_positions_are_refused_by_name(model):
    name = f"{model}_dcls"
    model, state = model_for(name), listing(name)
    key = [key for key in state if key.endswith(".P")][1]
    with pytest.raises(CheckpointError, match=rf"unequal: .*{re.escape(key)}.* should be one shared array"):
        load_weights(model, state | {key: state[key] + 1})

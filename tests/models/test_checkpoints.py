"""Reading checkpoints of every kind, converting them, and refusing what is not one."""

import argparse
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from convert_weights import convert
from dcls_jax import DclsConfig, freeze
from dcls_jax.models import CheckpointError, create_model, load_weights, save_weights
from tests.conftest import DATA, random_model

SMALL = {"depths": (2, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 10}
WEIGHTS = DATA / "golden" / "convnext_dcls_v0.weights.safetensors"


@pytest.fixture
def model():
    return random_model(lambda: create_model("convnext_tiny", dcls=DclsConfig(12, 17, "v0"), **SMALL))


def equal(a, b):
    pairs = zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_load_leaves_the_model_it_is_given_alone(model):
    before = nnx.clone(model)
    loaded = load_weights(model, WEIGHTS)
    assert equal(model, before)
    assert not equal(loaded, before)


def test_orbax_round_trip(model, tmp_path):
    loaded = load_weights(model, WEIGHTS)
    save_weights(loaded, tmp_path / "checkpoint")
    assert equal(load_weights(model, tmp_path / "checkpoint"), loaded)
    save_weights(model, tmp_path / "checkpoint")  # replaces
    assert equal(load_weights(model, tmp_path / "checkpoint"), model)


@pytest.mark.slow
def test_frozen_models_round_trip_too(model, tmp_path, assert_close):
    frozen = freeze(load_weights(model, WEIGHTS))
    save_weights(frozen, tmp_path / "frozen")
    assert equal(load_weights(freeze(model), tmp_path / "frozen"), frozen)


def test_orbax_checkpoint_of_another_model_is_refused(model, tmp_path):
    save_weights(random_model(lambda: create_model("convnext_tiny", **SMALL)), tmp_path / "standard")
    with pytest.raises(CheckpointError, match=r"missing: stages\.0\.positions\.P"):
        load_weights(model, tmp_path / "standard")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no checkpoint: it has nothing"):
        load_weights(model, tmp_path / "empty")


def test_convert_reads_back_and_reports(model, tmp_path):
    result = convert(WEIGHTS, tmp_path / "converted", model)
    assert result.largest_difference == 0
    assert result.parameters == 30842  # shared positions once
    assert equal(load_weights(model, tmp_path / "converted"), load_weights(model, WEIGHTS))
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]
    with pytest.raises(FileExistsError, match="exists"):
        convert(WEIGHTS, tmp_path / "converted", model)


def test_swap_positions_exchanges_rows_and_columns(model, assert_close):
    loaded, swapped = load_weights(model, WEIGHTS), load_weights(model, WEIGHTS, swap_positions=True)
    for a, b in zip(loaded.stages, swapped.stages, strict=True):
        np.testing.assert_array_equal(a.positions.P[...], b.positions.P[::-1])
    layers = loaded.stages[0].blocks[0].dwconv, swapped.stages[0].blocks[0].dwconv
    kernels = [layer.construct(m.stages[0].positions) for layer, m in zip(layers, (loaded, swapped), strict=True)]
    assert_close(kernels[1], kernels[0].transpose(1, 0, 2, 3), 1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module.", "model_ema", "state_dict_ema"])
def test_wrappers_of_published_files(model, tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    state = {key: torch.tensor(value) for key, value in load_file(WEIGHTS).items()}
    published = {
        "state_dict": {"state_dict": state, "epoch": 300, "arch": "convnext_tiny"},
        "model": {"model": state, "args": argparse.Namespace(lr=4e-3, output=pathlib.PosixPath("out"))},
        "module.": {f"module.{key}": value for key, value in state.items()},
        "model_ema": {"model": {key: value * 0 for key, value in state.items()}, "model_ema": state},
        "state_dict_ema": {"state_dict": {"other": torch.zeros(1)}, "state_dict_ema": state, "metric": 81.2},
    }[wrapper]
    torch.save(published, tmp_path / "file.pth.tar")
    assert equal(load_weights(model, tmp_path / "file.pth.tar"), load_weights(model, WEIGHTS))


class Malicious:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("/tmp/dcls_jax_was_here"),))


@pytest.mark.parity
def test_pickled_code_is_not_run(model, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {}, "args": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="can be read safely"):
        load_weights(model, tmp_path / "bad.pth")
    assert not pathlib.Path("/tmp/dcls_jax_was_here").exists()


def test_what_is_no_checkpoint_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_weights(model, tmp_path / "nothing.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_weights(model, tmp_path / "broken.safetensors")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected: a\b"):
        load_weights(model, tmp_path / "other.safetensors")


def test_every_problem_is_listed_at_once(model):
    state = dict(load_file(WEIGHTS))
    del state["norm.weight"]
    state["extra"] = np.zeros(1, np.float32)
    state["head.bias"] = np.zeros(11, np.float32)
    state["stages.0.1.dwconv.P"] = state["stages.0.1.dwconv.P"] + 1
    with pytest.raises(CheckpointError) as error:
        load_weights(model, state)
    text = str(error.value)
    assert "missing: norm.weight" in text
    assert "unexpected: extra" in text
    assert "misshapen: head.bias (fc.bias) has shape (11,), expected (10,)" in text
    assert "unequal: stages.0.0.dwconv.P (stages.0.blocks.0.dwconv.P) and stages.0.1.dwconv.P" in text

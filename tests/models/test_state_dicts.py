"""State dicts as they are found: wrapped, prefixed, in pieces, of other dtypes, damaged."""

import argparse
import collections
import gzip
import json
import os
import pathlib
import struct
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dcls_jax import Dcls2d
from dcls_jax.models import CheckpointError, load_weights, state_dict
from tests.conftest import random_model


def build():
    return Dcls2d(4, 4, 3, dilated_kernel_size=5, version="gauss", rngs=nnx.Rngs(0))


def layer(seed=0):
    return random_model(build, seed)


@pytest.fixture
def arrays():
    return state_dict(layer(1))


def check_loads(source, arrays):
    found = state_dict(load_weights(layer(), source))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module", "net"])
def test_wrappers(arrays, wrapper):
    check_loads({wrapper: arrays, "epoch": 3}, arrays)
    check_loads({wrapper: arrays, "model_ema": None, "state_dict_ema": {}}, arrays)
    worse = {name: array * 0 for name, array in arrays.items()}
    check_loads({wrapper: worse, "state_dict_ema": arrays}, arrays)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_prefixes_of_wrappers_are_left_out(arrays, prefix):
    check_loads({prefix + name: array for name, array in arrays.items()}, arrays)


def test_a_part_of_the_model_is_no_prefix():
    class Wrapped(nnx.Module):
        def __init__(self, seed):
            self.model = layer(seed)

    arrays = state_dict(Wrapped(1))
    assert {name.partition(".")[0] for name in arrays} == {"model"}
    for prefix in ("", "module."):
        loaded = load_weights(Wrapped(0), {prefix + name: array for name, array in arrays.items()})
        np.testing.assert_array_equal(loaded.model.bias, arrays["model.bias"])


def test_another_prefix_of_all_keys_is_said_in_one_line(arrays):
    with pytest.raises(CheckpointError, match=r"begins with 'student\.net\.', and fits the model without") as error:
        load_weights(layer(), {f"student.net.{name}": array for name, array in arrays.items()})
    assert "\n" not in str(error.value)


def test_counters_are_left_out(arrays):
    counters = {"num_batches_tracked": np.array(3), "total_ops": np.zeros(1), "a.total_params": np.zeros(1)}
    counters |= {"n_averaged": np.array(2)}  # torch.optim.swa_utils.AveragedModel
    check_loads(arrays | counters, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: np.zeros(3)}, r"the state dict has the key 3 \(int\), expected names"),
        ({"bias": [0.0] * 4}, "the state dict holds a list as bias, expected an array"),
        ({"bias": np.zeros(4, np.int64)}, "mistyped: bias has dtype int64, expected floating-point numbers"),
        ({"bias": np.zeros(4, np.bool_)}, "mistyped: bias has dtype bool"),
        ({"bias": np.zeros(4, np.complex64)}, "mistyped: bias has dtype complex64"),
        ({"bias": np.array(list("text"))}, "mistyped: bias has dtype <U1"),
    ],
)
def test_what_is_no_weight_is_refused_by_name(arrays, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_weights(layer(), arrays | change)


@pytest.mark.parametrize("source", [[], None, nnx.Linear(2, 3, rngs=nnx.Rngs(0))], ids=lambda it: type(it).__name__)
def test_what_is_neither_path_nor_state_dict_is_named(source):
    with pytest.raises(CheckpointError, match=rf"{type(source).__qualname__}, expected arrays by name"):
        load_weights(layer(), source)


def test_a_state_dict_in_itself_is_refused(arrays):
    circle = {"epoch": 3}
    circle["state_dict"] = {"model": circle}
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(layer(), circle)
    circle["net"] = arrays
    check_loads({"state_dict": {"model": {"module": {"net": arrays}}}}, arrays)


def test_an_array_without_a_shape_is_named(arrays):
    class Unborn:
        @property
        def shape(self):
            raise RuntimeError("can't access the shape of an uninitialized parameter")

        def __array__(self, *_, **__):
            raise RuntimeError("it has no values yet")

    with pytest.raises(CheckpointError, match="bias cannot be read as an array: it has no values yet"):
        load_weights(layer(), arrays | {"bias": Unborn()})


def test_what_is_no_state_dict_is_refused_with_what_it_has():
    with pytest.raises(CheckpointError, match=r"no state dict, bare or under .*; it has epoch, lr, args, and 1 more"):
        load_weights(layer(), {"epoch": 3, "lr": 0.1, "args": "", "optimiser": {}})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e38, 1e300])
def test_implausible_weights_are_loaded_with_a_warning(arrays, value):
    odd = arrays | {"bias": np.array([0, 1, value, 0])}
    with pytest.warns(UserWarning, match="^weights that are not finite or too large: bias$") as warnings:
        loaded = load_weights(layer(), odd)
    assert warnings[0].filename == __file__
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(loaded.bias, odd["bias"].astype(np.float32))


def test_a_warning_names_a_few_keys(arrays):
    with pytest.warns(UserWarning, match=r"too large: \S+, \S+, \S+, and 1 more$"):
        load_weights(layer(), {f"model.{name}": array * np.nan for name, array in arrays.items()})


def test_weights_that_overflow_the_models_dtype_are_warned_of(arrays):
    half = layer()
    half.bias.set_value(half.bias[...].astype(jnp.float16))
    with pytest.warns(UserWarning, match="too large: bias"):
        load_weights(half, arrays | {"bias": np.full(4, 1e5)})


def test_long_lists_are_cut_with_a_count(arrays):
    strangers = {f"block.{i}": np.zeros(3) for i in range(25)}
    with pytest.raises(CheckpointError) as error:
        load_weights(layer(), arrays | strangers | {"bias": np.zeros(5)})
    lines = str(error.value).splitlines()
    assert len([line for line in lines if "unexpected: block" in line]) == 10
    assert "  unexpected: and 15 more" in lines
    assert "  misshapen: bias has shape (5,), expected (4,)" in lines


def test_a_model_owns_its_weights(arrays):
    loaded = load_weights(layer(), arrays)
    before = {name: array.copy() for name, array in state_dict(loaded).items()}
    for array in arrays.values():
        array[:] = 7  # also what the state dict of another model gave is the user's
    for array in state_dict(loaded).values():
        array[:] = 8
    for name, array in state_dict(loaded).items():
        np.testing.assert_array_equal(array, before[name])


def safetensors_of(entries, path):
    """A file of (dtype, shape, bytes) by name."""
    header, data = {}, b""
    for name, (dtype, shape, content) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("BF16", jnp.bfloat16), ("F8_E4M3", jnp.float8_e4m3fn), ("F8_E5M2", jnp.float8_e5m2), ("F16", jnp.float16)],
)
def test_short_floats_of_safetensors(arrays, tmp_path, name, dtype):
    short = {key: array.astype(dtype) for key, array in arrays.items()}
    entries = {key: (name, array.shape, array.tobytes()) for key, array in short.items()}
    safetensors_of(entries, tmp_path / "short.safetensors")
    check_loads(tmp_path / "short.safetensors", {key: array.astype(np.float32) for key, array in short.items()})


def save_shards(arrays, folder):
    """The arrays in two files with an index, as model hubs have them."""
    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(sorted(arrays))}
    for file in set(names.values()):
        save_file({key: arrays[key] for key in arrays if names[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_folders_of_model_hubs(arrays, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_shards(arrays, tmp_path)
    check_loads(tmp_path, arrays)
    check_loads(tmp_path / "model.safetensors.index.json", arrays)
    save_file({name: array + 1 for name, array in arrays.items()}, tmp_path / "model.safetensors")
    check_loads(tmp_path, {name: array + 1 for name, array in arrays.items()})


def test_shards_that_do_not_add_up(arrays, tmp_path):
    save_shards(arrays, tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file(arrays, second)
    with pytest.raises(CheckpointError, match=r"files that both have the key \S+, such as model-00002"):
        load_weights(layer(), tmp_path)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"lists model-00002-of-00002\.safetensors, which is not there"):
        load_weights(layer(), tmp_path)
    for text in ("{", '{"a":' * 100_000, "[]", "{}", '{"weight_map": {"bias": 3}}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json is not an index of weights: expected JSON"):
            load_weights(layer(), tmp_path)


def assert_one_line_about(path, error):
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "model.safetensors.index.json"])
def test_what_is_no_regular_file_does_not_hang(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)  # without one, opening it to read would keep every thread waiting
    errors = []

    def load():
        with pytest.raises(CheckpointError, match="is not a regular file") as error:
            load_weights(layer(), path)
        errors.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(20)
    alive = thread.is_alive()
    os.close(writer)
    assert not alive
    assert_one_line_about(path, errors[0])


def test_files_that_cannot_be_read_are_named(arrays, tmp_path):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    save_file(arrays, whole)
    content = whole.read_bytes()
    for size in (0, 5, 60, len(content) - 10):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError) as error:
            load_weights(layer(), path)
        assert_one_line_about(path, error)
    safetensors_of({"bias": ("F8_E8M0", (4,), bytes(4))}, path)
    with pytest.raises(CheckpointError) as error:
        load_weights(layer(), path)
    assert_one_line_about(path, error)


@pytest.mark.parametrize("name", ["blobs/0a1b2c", "weights.pth", "weights.SAFETENSORS"])
def test_safetensors_of_any_name(arrays, tmp_path, name):
    (tmp_path / "blobs").mkdir()
    save_file(arrays, tmp_path / name)
    check_loads(tmp_path / name, arrays)


# In the place of weights.
FOUND = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 3\n",
    "compressed by gzip": gzip.compress(b"weights"),
    "a web page": b"<!DOCTYPE html><html>not found</html>",
}


@pytest.mark.parametrize("what", FOUND)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_what_is_found_in_the_place_of_weights_is_named(tmp_path, what, name):
    (tmp_path / name).write_bytes(FOUND[what])
    with pytest.raises(CheckpointError, match=f"{name} is {what}") as error:
        load_weights(layer(), tmp_path / name)
    assert_one_line_about(tmp_path / name, error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_named(arrays, tmp_path):
    save_file(arrays, tmp_path / "locked.safetensors")
    (tmp_path / "locked.safetensors").chmod(0)
    with pytest.raises(PermissionError) as error:
        load_weights(layer(), tmp_path / "locked.safetensors")
    assert_one_line_about(tmp_path / "locked.safetensors", error)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:(.*quantized tensor|TypedStorage).*deprecated")
def test_tensors_of_every_kind_become_arrays(arrays, tmp_path, torch):
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    kinds = {
        "parameter": {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()},
        "sparse": tensors | {"weight": tensors["weight"].to_sparse()},
        "negated": tensors | {"bias": torch.complex(tensors["bias"] * 0, -tensors["bias"]).conj().imag},
        "bfloat16": tensors | {"bias": tensors["bias"].to(torch.bfloat16)},
        "float8": tensors | {"bias": tensors["bias"].to(torch.float8_e4m3fn)},
        "quantised": tensors | {"bias": torch.quantize_per_tensor(tensors["bias"], 0.01, 0, torch.qint8)},
    }
    assert kinds["negated"]["bias"].is_neg()
    for kind, state in kinds.items():
        torch.save(state, tmp_path / "file.pth")
        exact = kind in ("parameter", "sparse", "negated")
        for source in (state, tmp_path / "file.pth"):
            found = state_dict(load_weights(layer(), source))
            for name, array in arrays.items():
                np.testing.assert_allclose(found[name], array, 0 if exact else 0.1, 0 if exact else 0.01)


@pytest.mark.parity
def test_tensors_that_are_no_weights_are_named(arrays, tmp_path, torch):
    bias = torch.tensor(arrays["bias"])
    for strange, message in [
        (bias.to("meta"), "bias cannot be read as an array: it is on the device meta"),
        (torch.complex(bias, bias).conj(), "mistyped: bias has dtype complex64"),
        (bias.long(), "mistyped: bias has dtype int64"),
        (torch.nested.nested_tensor([bias], layout=torch.jagged), "bias cannot be read as an array"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_weights(layer(), arrays | {"bias": strange})
    torch.save({"bias": bias.to("meta")}, tmp_path / "meta.pth")
    with pytest.raises(CheckpointError, match=r"meta\.pth: bias cannot be read as an array"):
        load_weights(layer(), tmp_path / "meta.pth")


@pytest.mark.parity
def test_a_model_that_trains_on_does_not_change_what_was_loaded(arrays, torch):
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    loaded = load_weights(layer(), {name: tensor.numpy() for name, tensor in tensors.items()})
    for tensor in tensors.values():
        tensor.add_(1)
    np.testing.assert_array_equal(loaded.bias, arrays["bias"])


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_things_beside_the_weights(arrays, tmp_path, torch, zipped):
    module = torch.nn.Module()
    for name, array in arrays.items():
        module.register_parameter(name, torch.nn.Parameter(torch.tensor(array)))
    beside = {
        "accuracy": np.float64(81.2),
        "epoch": np.int64(3),
        "best": np.bool_(True),
        "curve": np.arange(3.0),
        "meters": collections.defaultdict(list, loss=[1.0]),
        "counts": collections.defaultdict(int, a=1),
        "out": pathlib.PurePosixPath("out"),
        "root": pathlib.PureWindowsPath("C:/out"),
        "args": argparse.Namespace(lr=4e-3, output=pathlib.PosixPath("out"), seeds={1, 2}),
    }
    torch.save({"net": module.state_dict(), **beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    check_loads(tmp_path / "a.pth", arrays)


@pytest.mark.parity
@pytest.mark.skipif(os.name == "nt", reason="there the path is an ordinary one")
def test_paths_of_windows_beside_the_weights(arrays, tmp_path, torch):
    class WindowsPath(pathlib.PureWindowsPath):
        """Pickled as Windows pickles its own."""

    WindowsPath.__module__, WindowsPath.__qualname__ = "pathlib", "WindowsPath"
    original, pathlib.WindowsPath = pathlib.WindowsPath, WindowsPath
    try:
        torch.save({"model": {k: torch.tensor(v) for k, v in arrays.items()}, "p": WindowsPath("C:/x")}, tmp_path / "a")
    finally:
        pathlib.WindowsPath = original
    check_loads(tmp_path / "a", arrays)


class Net:
    pass


@pytest.mark.parity
def test_pickled_modules_are_refused_in_one_line(tmp_path, torch):
    for saved, name in [(torch.nn.Linear(2, 3), r"torch\.nn\.modules\.linear\.Linear"), (Net(), rf"{__name__}\.Net")]:
        torch.save(saved, tmp_path / "module.pth")
        with pytest.raises(CheckpointError, match=rf"it holds {name}, .*save its state_dict\(\)$") as error:
            load_weights(layer(), tmp_path / "module.pth")
        assert_one_line_about(tmp_path / "module.pth", error)


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pytorch_files_are_named(arrays, tmp_path, torch, zipped):
    path = tmp_path / "file.pth"
    torch.save({k: torch.tensor(v) for k, v in arrays.items()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for damaged in (b"", content[:300], content[:-30], b"<!doctype html>", b"version https://git-lfs.github.com/spec"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            load_weights(layer(), path)
        assert_one_line_about(path, error)
        assert "weights_only" not in str(error.value)


@pytest.mark.parity
def test_folders_of_model_hubs_in_pytorchs_format(arrays, tmp_path, torch):
    torch.save({k: torch.tensor(v) for k, v in arrays.items()}, tmp_path / "pytorch_model.bin")
    check_loads(tmp_path, arrays)

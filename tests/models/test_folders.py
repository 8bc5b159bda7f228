"""Orbax checkpoints: nothing of the user's is lost, and what was written can be read."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

from convert_weights import convert
from dcls_jax import Dcls2d
from dcls_jax.models import CheckpointError, load_weights, save_weights, state_dict
from dcls_jax.models.convert import check_paths
from dcls_jax.models.locks import hold
from tests.conftest import random_model


def layer(seed=0):
    return random_model(lambda: Dcls2d(4, 4, 3, dilated_kernel_size=5, rngs=nnx.Rngs(0)), seed)


def is_at(folder, model):
    found, expected = state_dict(load_weights(layer(9), folder)), state_dict(model)
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def tree(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    [
        "lr=[0.1]/weights",
        "weights[1]",
        "back\\slash",
        "back\\slash/weights",
        "a*b?",
        "sp ace",
        "[",
        "new/deep/é",
        os.fsdecode(b"latin\xe9"),
        "w.orbax-checkpoint-tmp",
        "a:b",
    ],
)
def test_what_is_saved_anywhere_can_be_read(tmp_path, name):
    for seed in (1, 2):
        save_weights(layer(seed), tmp_path / name)
        assert is_at(tmp_path / name, layer(seed))
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]
    assert [path.name for path in tmp_path.iterdir()] == [pathlib.PurePath(name).parts[0]]


@pytest.mark.parametrize("path", ["gs://bucket/weights", "file:///weights", pathlib.Path("s3://bucket/weights")])
def test_urls_are_no_paths(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"weights is a URL, expected a path"):
        save_weights(layer(), path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_was_moved_can_be_read(tmp_path):
    save_weights(layer(), tmp_path / "weights")
    (tmp_path / "weights").rename(tmp_path / "lr=[0.1]")
    assert is_at(tmp_path / "lr=[0.1]", layer())


def test_only_checkpoints_are_replaced(tmp_path):
    file, other, mixed, steps = (tmp_path / name for name in ("notes.txt", "other", "mixed", "steps"))
    file.write_text("notes")
    other.mkdir()
    (other / "thesis.tex").write_text("thesis")
    save_weights(layer(), mixed)
    (mixed / "notes.txt").write_text("notes")
    save_weights(layer(), steps / "100")
    before = tree(tmp_path)
    for folder, named in [(file, "not a folder"), (other, "thesis.tex"), (mixed, "notes.txt"), (steps, "100")]:
        with pytest.raises(FileExistsError, match=rf"{re.escape(str(folder))}\b.*{named}") as error:
            save_weights(layer(1), folder)
        assert "\n" not in str(error.value)
    assert tree(tmp_path) == before


def test_empty_folders_and_links_are_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    save_weights(layer(1), tmp_path / "empty")
    (tmp_path / "latest").symlink_to("empty")
    save_weights(layer(2), tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert is_at(tmp_path / "empty", layer(2))
    (tmp_path / "next").symlink_to("later")
    save_weights(layer(3), tmp_path / "next")
    assert is_at(tmp_path / "later", layer(3))


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_weights(layer(1), tmp_path / "weights")

    def fails(*_):
        assert is_at(tmp_path / "weights", layer(1))
        raise ValueError("no space left\nTraceback")

    monkeypatch.setattr(ocp, "save", fails)
    with pytest.raises(OSError, match=r"weights could not be written: no space left$"):
        save_weights(layer(2), tmp_path / "weights")
    assert is_at(tmp_path / "weights", layer(1))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


FULL = """
import resource, sys
from flax import nnx
from dcls_jax import Dcls2d
from dcls_jax.models import save_weights

layer = Dcls2d(64, 64, 9, dilated_kernel_size=5, rngs=nnx.Rngs(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_weights(layer, sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_what_cannot_be_written_is_said_in_one_line(tmp_path):
    folder = tmp_path / "weights"
    done = subprocess.run([sys.executable, "-c", FULL, folder], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"[Errno 27] File too large: '{folder}'\n", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moved", [1, 2])
def test_a_save_stopped_at_either_rename_leaves_the_old_checkpoint(tmp_path, monkeypatch, moved):
    save_weights(layer(1), tmp_path / "weights")
    rename, calls = pathlib.Path.rename, []

    def interrupted(path, target):
        if tmp_path / "weights" in (path, target):
            calls.append(path)
            if len(calls) == moved:
                raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(layer(2), tmp_path / "weights")
    assert is_at(tmp_path / "weights", layer(1))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_the_old_checkpoint_is_put_back_after_a_kill_between_the_renames(tmp_path, monkeypatch):
    save_weights(layer(1), tmp_path / "weights")
    beside = tmp_path / ".weights.dcls_jax"
    beside.mkdir()
    (tmp_path / "weights").rename(beside / "old")
    for unfinished in ("new", "new.orbax-checkpoint-tmp"):
        (beside / unfinished / "state").mkdir(parents=True)

    def fails(place, _):
        assert {path.name for path in place.parent.iterdir()} == {"lock"}
        return 1 / 0

    monkeypatch.setattr(ocp, "save", fails)
    with pytest.raises(OSError, match="division by zero"):
        save_weights(layer(2), tmp_path / "weights")
    assert is_at(tmp_path / "weights", layer(1))
    assert not beside.exists()


def test_ctrl_c_waits_for_the_save_and_the_second_does_not(tmp_path, monkeypatch):
    save, handler = ocp.save, signal.getsignal(signal.SIGINT)

    def pressed(times):
        def saves(*arguments):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            save(*arguments)

        return saves

    for times, seed, there in ((1, 1, 1), (2, 2, 1), (1, 3, 3)):
        monkeypatch.setattr(ocp, "save", pressed(times))
        with pytest.raises(KeyboardInterrupt):
            save_weights(layer(seed), tmp_path / "weights")
        assert is_at(tmp_path / "weights", layer(there))
        assert [path.name for path in tmp_path.iterdir()] == ["weights"]
        assert signal.getsignal(signal.SIGINT) is handler


KILLED = """
import sys
from tests.models.test_folders import layer, save_weights
models = [layer(1), layer(2)]
print("ready", flush=True)
while True:
    for model in models:
        save_weights(model, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SIGKILL", "SIGINT"])
def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path, kind):
    save_weights(layer(1), tmp_path / "weights")
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "weights"], stdout=-1, stderr=-3)
    try:
        process.stdout.readline()
        time.sleep(0.2 + np.random.default_rng().uniform(0, 0.1))
        process.send_signal(getattr(signal, kind))
        process.wait(60)
    finally:
        process.kill()
        process.stdout.close()
    if kind == "SIGINT":
        assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    left = tmp_path / ".weights.dcls_jax" / "old"
    whole = left if left.exists() and not (tmp_path / "weights").exists() else tmp_path / "weights"
    assert is_at(whole, layer(1)) or is_at(whole, layer(2))
    save_weights(layer(3), tmp_path / "weights")
    assert is_at(tmp_path / "weights", layer(3))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_checkpoints_may_be_lists(tmp_path):
    class Two(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([layer(1), layer(2)])

    model = Two()
    for i in range(2):
        save_weights(model.layers[i], tmp_path / f"{i}")
    ocp.save(tmp_path / "list", {"layers": [ocp.load(tmp_path / f"{i}") for i in range(2)]})
    loaded = load_weights(Two(), tmp_path / "list")
    np.testing.assert_array_equal(loaded.layers[1].weight, model.layers[1].weight)
    ocp.save(tmp_path / "other", [np.zeros(3), {"a": None, "b": "text"}])
    with pytest.raises(CheckpointError, match=r"unexpected: 0\n"):
        load_weights(layer(), tmp_path / "other")
    ocp.save(tmp_path / "array", np.zeros(3))
    with pytest.raises(CheckpointError, match="array holds a single ndarray, expected arrays by name"):
        load_weights(layer(), tmp_path / "array")


def test_orbax_checkpoints_are_checked_as_state_dicts_are(tmp_path):
    odd = layer()
    odd.bias.set_value(odd.bias[...] * np.nan)
    save_weights(odd, tmp_path / "odd")
    with pytest.warns(UserWarning, match="not finite or too large: bias"):
        load_weights(layer(), tmp_path / "odd")
    ocp.save(tmp_path / "whole", {"bias": np.zeros(4, np.int32)})
    with pytest.raises(CheckpointError, match="mistyped: bias has dtype int32"):
        load_weights(layer(), tmp_path / "whole")


def test_positions_are_swapped_wherever_they_are_from(tmp_path):
    model = layer()
    save_weights(model, tmp_path / "weights")
    for source in (tmp_path / "weights", state_dict(model)):
        swapped = load_weights(model, source, swap_positions=True)
        np.testing.assert_array_equal(swapped.positions.P[...], model.positions.P[...][::-1])


@pytest.mark.long
def test_damaged_orbax_checkpoints_are_named(tmp_path):
    save_weights(layer(), tmp_path / "weights")
    for part in ("_METADATA", "manifest.ocdbt"):
        damaged = tmp_path / part
        shutil.copytree(tmp_path / "weights", damaged)
        for size in (20, 0):
            (damaged / "state" / part).write_bytes((damaged / "state" / part).read_bytes()[:size])
            with pytest.raises(CheckpointError, match=rf"{damaged} is not a readable Orbax checkpoint: .") as error:
                load_weights(layer(), damaged)
            assert len(str(error.value).splitlines()) == 1
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        CheckpointError, match=r"nothing is no checkpoint: it has nothing, expected an Orbax checkpoint"
    ):
        load_weights(layer(), tmp_path / "nothing")
    for name in ("weights.pth", "config.json"):
        (tmp_path / "nothing" / name).touch()
    with pytest.raises(
        CheckpointError, match=r"it has config\.json, weights\.pth, expected .*, or model\.safetensors or "
    ):
        load_weights(layer(), tmp_path / "nothing")


def test_convert_writes_where_it_says(tmp_path):
    save_file(state_dict(layer(1)), tmp_path / "source.safetensors")
    for name in ("lr=[0.1]/weights", "back\\slash"):
        result = convert(tmp_path / "source.safetensors", tmp_path / name, layer())
        assert result.destination == tmp_path / name
        assert is_at(result.destination, layer(1))
        assert [path.name for path in result.destination.parent.iterdir() if "dcls_jax" in path.name] == []


def test_convert_keeps_what_is_not_finite(tmp_path):
    arrays = state_dict(layer(1)) | {"bias": np.array([np.nan, np.inf, -np.inf, 0], np.float32)}
    save_file(arrays, tmp_path / "source.safetensors")
    with pytest.warns(UserWarning, match="not finite or too large: bias") as warned:
        result = convert(tmp_path / "source.safetensors", tmp_path / "weights", layer())
    assert len(warned) == 1
    assert result.largest_difference == 0


def test_convert_loses_nothing_that_is_there(tmp_path):
    save_file(state_dict(layer(1)), tmp_path / "source.safetensors")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="dangling exists"):
        check_paths(tmp_path / "source.safetensors", tmp_path / "dangling")
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        check_paths(tmp_path / "source.safetensors", tmp_path / "file" / "weights")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("converts", [True, False])
def test_what_appears_while_weights_are_written_is_kept(tmp_path, monkeypatch, converts):
    save_file(state_dict(layer(1)), tmp_path / "source.safetensors")
    save, folder = ocp.save, tmp_path / "weights"

    def meanwhile(*arguments):
        save(*arguments)
        if converts:
            save(folder, {"bias": np.zeros(4)})
        else:
            folder.mkdir()
            (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(ocp, "save", meanwhile)
    with pytest.raises(FileExistsError, match="weights exists; remove it" if converts else r"\(notes\.txt\)"):
        convert(tmp_path / "source.safetensors", folder, layer()) if converts else save_weights(layer(1), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.safetensors", "weights"]
    assert (ocp.load(folder)["bias"] == 0).all() if converts else (folder / "notes.txt").read_text() == "mine"


def test_what_reads_back_otherwise_is_not_converted(tmp_path, monkeypatch):
    save_file(state_dict(layer(1)), tmp_path / "source.safetensors")
    save = ocp.save
    monkeypatch.setattr(ocp, "save", lambda place, found: save(place, found | {"bias": found["bias"] + 1}))
    with pytest.raises(OSError, match=rf"what was written for {tmp_path / 'weights'} differs by 1\.0 from"):
        convert(tmp_path / "source.safetensors", tmp_path / "weights", layer())
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_checkpoint_is_written_by_one_at_a_time(tmp_path):
    save_weights(layer(1), tmp_path / "weights")
    beside = tmp_path / ".weights.dcls_jax"
    beside.mkdir()
    other = hold(beside)
    (beside / "new").mkdir()
    with pytest.raises(OSError, match=rf"weights is in use by process {os.getpid()} on .*; wait for it to end"):
        save_weights(layer(2), tmp_path / "weights")
    assert {path.name for path in beside.iterdir()} == {"lock", "new"}
    assert is_at(tmp_path / "weights", layer(1))
    os.close(other)
    save_weights(layer(2), tmp_path / "weights")
    assert is_at(tmp_path / "weights", layer(2))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


RACING = """
import sys
from tests.models.test_folders import layer, save_weights
model = layer(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(8):
    try:
        save_weights(model, sys.argv[1])
    except OSError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_of_two_programs_at_one_checkpoint_one_says_so(tmp_path):
    folder = tmp_path / "weights"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", RACING, folder, seed], **pipes) for seed in "12"]
    try:
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        ends = [(*racer.communicate(timeout=60), racer.returncode) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    for (said, errors, code), other in zip(ends, reversed(racers), strict=True):
        assert (code, errors) == (0, "")
        in_use = rf"{re.escape(str(folder))} is in use by (process {other.pid} on .* since .*|another process); wait "
        assert all(re.match(in_use, line) for line in said.splitlines()), said
    assert is_at(folder, layer(1)) or is_at(folder, layer(2))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_paths_of_homes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_weights(layer(), "~/weights")
    assert is_at(tmp_path / "weights", layer())
    with pytest.raises(FileNotFoundError, match="no checkpoint at ~nobody-of-that-name/weights"):
        load_weights(layer(), "~nobody-of-that-name/weights")

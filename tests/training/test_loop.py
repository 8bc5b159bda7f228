"""Training runs: the same numbers on any devices, after any kill, in any parts; and what ends them."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import jax
import numpy as np
import pytest
import small
from small import RECIPE, Run, leaves

from dcls_jax.training.augmentation import Augmentation
from dcls_jax.training.log import read
from dcls_jax.training.loop import DivergedError
from tests.conftest import arrays_in, long

PLAIN = Augmentation(small.SIDE, rand_augment=None, colour_jitter=0, erasing=0)
QUIET = replace(RECIPE, mixup_alpha=0.0, cutmix_alpha=0.0)


def other(folder: Path, *, devices: int, processes: int = 1, dies_at: int = -1) -> list[int]:
    """Exit codes of the run as a program of its own, in so many processes on so many devices each."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_NUM_CPU_DEVICES": str(devices)}
    with TemporaryFile("w+") as output:
        running = [
            subprocess.Popen(
                [sys.executable, small.__file__, str(folder), str(dies_at)]
                + ([str(port), str(number)] if processes > 1 else []),
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for number in range(processes)
        ]
        codes = [process.wait(timeout=240) for process in running]
        output.seek(0)
        assert set(codes) <= {0, -signal.SIGKILL}, output.read()
    return codes


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in read(folder / "log.csv")]


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def timeless(folder: Path) -> list[dict[str, str]]:
    return [
        {name: value for name, value in row.items() if name != "images_per_second"} for row in read(folder / "log.csv")
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of a process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    assert other(folder, devices=1) == [0]
    return folder


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    recipe = replace(QUIET, epochs=15, learning_rate=2e-2)
    parts, state = Run(tmp_path, steps=60, recipe=recipe, drop=0.0, augment=PLAIN)()
    assert small.evaluated(parts, state)["top1"] > 0.6


@pytest.mark.slow
@pytest.mark.as_for_users
def test_a_killed_run_ends_as_an_undisturbed_one_to_the_bit(alone: Path, tmp_path: Path) -> None:
    assert other(tmp_path, devices=1, dies_at=15) == [-signal.SIGKILL]
    assert [row["step"] for row in read(tmp_path / "log.csv")] in (["4", "6", "8", "12"], ["4", "6", "8"])
    assert other(tmp_path, devices=1) == [0]
    same(arrays_in(tmp_path / "end.npz"), arrays_in(alone / "end.npz"))
    assert timeless(tmp_path) == timeless(alone)
    assert [row["step"] for row in timeless(alone)] == ["4", "6", "8", "12", "16", "18", "20"]


def assert_as(alone: Path, folder: Path, end: dict[str, Any]) -> None:
    """Losses to rounding; what is learned within what Adam makes of rounding in a gradient near zero."""
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-6)
    for name, expected in arrays_in(alone / "end.npz").items():
        np.testing.assert_allclose(end[name], expected, atol=1e-3, rtol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.as_for_users
def test_eight_devices_are_as_one(alone: Path, tmp_path: Path) -> None:
    _, state = Run(tmp_path)()
    assert jax.device_count() == 8
    assert_as(alone, tmp_path, leaves(state))


@pytest.mark.slow
@pytest.mark.as_for_users
@pytest.mark.parametrize("devices", [long(1), 2])
def test_two_processes_are_as_one(alone: Path, tmp_path: Path, devices: int) -> None:
    assert other(tmp_path, devices=devices, processes=2) == [0, 0]
    assert_as(alone, tmp_path, arrays_in(tmp_path / "end.npz"))


@pytest.mark.long
@pytest.mark.as_for_users
def test_a_killed_run_goes_on_on_other_devices(alone: Path, tmp_path: Path) -> None:
    assert other(tmp_path, devices=1, dies_at=15) == [-signal.SIGKILL]
    assert other(tmp_path, devices=4) == [0]
    assert_as(alone, tmp_path, arrays_in(tmp_path / "end.npz"))


@pytest.mark.slow
def test_parts_of_a_batch_are_as_the_whole(tmp_path: Path) -> None:
    """Without what goes over a part: mixed pictures, batch statistics in use, noise and drops."""
    ends = []
    for accumulate in (1, 2):
        run = Run(tmp_path / str(accumulate), 8, accumulate, QUIET, 0.0, PLAIN, frozen=("norm",))
        ends.append(run())
    np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=1e-6)
    (_, whole), (_, parts) = ends
    for name, expected in leaves(whole["params"]).items():
        np.testing.assert_allclose(leaves(parts["params"])[name], expected, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_frozen_parts_stay(tmp_path: Path) -> None:
    parts, state = Run(tmp_path, 4, frozen=("stem", "norm"))()
    before = small.Net(rngs=small.nnx.Rngs(0))
    model = small.nnx.merge(parts.graph, state["params"], state["stats"], parts.random)
    np.testing.assert_array_equal(model.stem.kernel[...], before.stem.kernel[...])
    np.testing.assert_array_equal(model.norm.mean[...], before.norm.mean[...])
    assert (np.asarray(model.fc.kernel[...]) != np.asarray(before.fc.kernel[...])).any()
    assert "stem" not in str([name for name in leaves(state["optimiser"]) if "mu" in name])


@pytest.mark.slow
def test_what_diverges_ends_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    wild = replace(QUIET, learning_rate=1e30, warmup_start=1e-3, warmup_epochs=2)
    with pytest.raises(DivergedError, match=r"step \d+: the loss .*; the last good checkpoint is .*/checkpoints/2;"):
        Run(tmp_path, recipe=wild, save_every=1)()
    assert all(np.isfinite(losses(tmp_path)))
    with pytest.raises(DivergedError, match="nothing was kept yet"):
        Run(tmp_path / "other", recipe=replace(wild, warmup_start=1e30))()


@pytest.mark.long
def test_the_last_checkpoints_and_the_best_stay(tmp_path: Path) -> None:
    found, kept = iter([0.1, 0.9, 0.3, 0.4, 0.5]), []
    Run(tmp_path)(
        evaluate=lambda state: {"top1": next(found), "top5": 1.0},
        evaluate_every=4,
        keep_best=lambda state: kept.append(int(state["step"])),
    )
    assert kept == [4, 8]
    # the last two, of which each row of the log says what evaluation found, and the best
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [8, 18, 20]
    assert [row["top1"] for row in read(tmp_path / "log.csv") if row["top1"]] == ["0.1", "0.9", "0.3", "0.4", "0.5"]


@pytest.mark.long
def test_evaluation_goes_on_after_a_stop(tmp_path: Path) -> None:
    """The best is remembered: a worse one after the stop is not kept."""
    values, kept = [0.8], []
    options = {
        "evaluate": lambda state: {"top1": values[-1], "top5": 1.0},
        "evaluate_every": 4,
        "keep_best": lambda state: kept.append(int(state["step"])),
    }
    Run(tmp_path, steps=8)(**options)
    values.append(0.5)
    Run(tmp_path, steps=16)(**options)
    assert kept == [4]
    assert [row["step"] for row in read(tmp_path / "log.csv")][-1] == "16"


@pytest.mark.long
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys, small; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        "from pathlib import Path\n"
        "try: small.Run(Path(sys.argv[1]))()\n"
        "except OSError as error: print('said:', error)"
    )
    environment = os.environ | {"PYTHONPATH": f"{os.path.dirname(small.__file__)}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert f"said: [Errno 27] File too large: '{tmp_path}/checkpoints'" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_state_on_devices_is_not_the_one_handed_in(tmp_path: Path) -> None:
    parts, state = Run(tmp_path, steps=4)()
    model = small.model_of(parts, state)
    Run(tmp_path, steps=8)()  # gives away the memory of its own state alone
    assert np.isfinite(np.asarray(jax.tree.leaves(model)[0], np.float32)).all()

"""What holds of every metric's run: killed, padded, on one device and on eight."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from dcls_jax.eval.metric import Result
from tests.conftest import slow

pytestmark = pytest.mark.as_for_users

Tiny = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=[name if name == "clickme" else slow(name) for name in tiny.METRICS])
def metric(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def undisturbed(metric: str, shards: Path) -> Sequence[Result]:
    return tiny.measure(metric, shards)


def assert_same(scores: dict[str, Any], expected: Sequence[Result], atol: float = 0) -> None:
    """Scores as tiny.py prints them; atol: what may differ."""
    assert scores.keys() == {str(result.labels) for result in expected}
    for result in expected:
        for name, values in {**result.scores, "status": result.status}.items():
            np.testing.assert_allclose(scores[str(result.labels)][name], values, rtol=0, atol=atol, err_msg=name)


def test_a_killed_run_resumes_to_the_bit(
    metric: str, undisturbed: Sequence[Result], shards: Path, tmp_path: Path, run_tiny: Tiny
) -> None:
    folder = tmp_path / "run"
    killed = run_tiny(shards, [metric], folder, kill_after="1")
    assert killed.returncode == -9, killed.stderr
    left = ["lock", "part-000000.npz", "part-000001.npz.tmp", "run.json"]
    assert sorted(path.name for path in folder.iterdir()) == left
    kept = (folder / "part-000000.npz").stat().st_mtime_ns
    resumed = tiny.measure(metric, shards, out=folder)
    assert_same(tiny.scores_of(resumed), undisturbed)
    np.testing.assert_equal([result.values for result in resumed], [result.values for result in undisturbed])
    assert (folder / "part-000000.npz").stat().st_mtime_ns == kept
    assert not list(folder.glob("*.tmp"))
    summary = json.loads((folder / "summary.json").read_text())["results"]
    for result, there in zip(undisturbed, summary.values(), strict=True):
        assert result.counted == there["counted"] > 10
        assert {name: there[name] for name in result.values} == result.values


def test_what_fills_up_the_last_batch_does_not_count(metric: str, undisturbed: Sequence[Result], shards: Path) -> None:
    assert all(len(result.status) == 20 for result in undisturbed)  # in batches of 8
    assert_same(tiny.scores_of(tiny.measure(metric, shards, batch_size=40)), undisturbed, atol=1e-5)


@pytest.fixture(scope="module")
def on_one_device(metric: str, shards: Path, run_tiny: Tiny) -> dict[str, Any]:
    finished = run_tiny(shards, [metric], devices=1)
    assert finished.returncode == 0, finished.stderr
    output: dict[str, Any] = json.loads(finished.stdout)
    return output


@pytest.mark.slow
def test_one_device_gives_the_same_scores_as_eight_and_no_tensorflow(
    metric: str, undisturbed: Sequence[Result], on_one_device: dict[str, Any]
) -> None:
    assert on_one_device["devices"] == 1
    assert not on_one_device["tensorflow"]
    assert_same(on_one_device["scores"][metric], undisturbed, atol=1e-5)

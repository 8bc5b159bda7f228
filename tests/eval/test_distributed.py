"""`dcls-jax ... --distributed`: processes that join by JAX's variables, one of which is killed, and the rerun."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

from dcls_jax.eval import hosts
from tests.conftest import long

PROCESS = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(tiny.__file__)!r})
import tiny
import dcls_jax.models
from dcls_jax.eval.cli import main
from dcls_jax.eval.suite import run
dcls_jax.models.create_model = lambda *_, **__: tiny.Tiny()
run.build = lambda model: tiny.Tiny()
if after := os.environ.get("DIE_AFTER"):
    tiny._die_after(int(after))
main()
"""
SUITE = """
batch_size: 2
models: [{sample: convnext}, {sample: convnext_dcls}]
methods: [grad_cam]
evaluations: [{metric: clickme, data: sample, first: 6}, {metric: accuracy, data: sample, first: 6}]
"""


def job(
    count: int, arguments: Sequence[object], out: Path, die: tuple[int, int] | None = None
) -> list[tuple[int, str]]:
    """Exit code and messages of each of `count` processes; die: one of them, and the part that it dies at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = os.environ | {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
    }
    processes, logs = [], [out.with_name(f"{out.name}-{number}.log") for number in range(count)]
    for number, log in enumerate(logs):
        own = {"JAX_PROCESS_ID": str(number)} | ({"DIE_AFTER": str(die[1])} if die and die[0] == number else {})
        command = [sys.executable, "-c", PROCESS, *map(str, arguments), "--out", str(out)]
        command += ["--distributed"] if count > 1 else []
        with log.open("w") as file:
            processes.append(subprocess.Popen(command, env=shared | own, stdout=file, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=240) for process in processes]
    time.sleep(0.5)  # for what is said at the end
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def parts(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("part-*.npz"))}


@pytest.mark.as_for_users
@pytest.mark.slow
@pytest.mark.parametrize(("count", "who"), [(2, 0), long(2, 1), long(4, None)])
def test_a_lost_process_ends_the_others_and_the_rerun_goes_on(
    count: int, who: int | None, shards: Path, tmp_path: Path
) -> None:
    command = ["eval", "clickme", shards, "--model", "convnext_tiny", "--batch-size", 2, "--method", "grad_cam"]
    who = random.Random().randrange(count) if who is None else who
    start = time.monotonic()
    ends = job(count, command, tmp_path / "many", (who, who + count))  # its second part
    assert ends[who][0] == -signal.SIGKILL, ends
    for number, (code, said) in enumerate(ends):
        assert code or number == who
        assert "the same command, in every process, goes on from here" in said, (number, said)
    assert time.monotonic() - start < hosts.LOST_AFTER + 60
    done = set(parts(tmp_path / "many"))
    assert done
    ends = job(count, command, tmp_path / "many")
    assert [code for code, _ in ends] == [0] * count, ends
    assert [("results: " in said) for _, said in ends] == [True] + [False] * (count - 1)
    (alone,) = job(1, command, tmp_path / "one")
    assert alone[0] == 0, alone
    assert parts(tmp_path / "many") == parts(tmp_path / "one")
    (summary,) = (tmp_path / "many").glob("*/summary.json")
    assert json.loads(summary.read_text())["hosts"] == count


@pytest.mark.as_for_users
@pytest.mark.long
def test_a_suite_of_two_processes_ends_with_one_report(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    ends = job(2, ["suite", tmp_path / "suite.yaml"], tmp_path / "two")
    assert [code for code, _ in ends] == [0, 0], ends
    assert [said.count("report: ") for _, said in ends] == [1, 0]
    assert (tmp_path / "two" / "report.html").exists()
    assert len([*(tmp_path / "two").glob("*/summary.json")]) == 4


@pytest.mark.slow
def test_without_a_job_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, "eval", "clickme", "x", "-m", "convnext_tiny", "--distributed"],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: no job of several processes is found (coordinator_address should be defined")
    assert done.stderr.count("\n") == 1

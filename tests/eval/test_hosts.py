"""Several processes of one job: late, failing, and against another job."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiny

from dcls_jax.eval.data.records import write_records

PROCESS = f"""
import json, sys, time
sys.path.insert(0, {os.path.dirname(tiny.__file__)!r})
import jax
port, number, late, records, out, *metrics = sys.argv[1:]
jax.distributed.initialize(f"localhost:{{port}}", 2, int(number))
import tiny
jax.devices()  # for these all wait for each other
time.sleep(float(late))
try:
    results = {{name: tiny.measure(name, records, batch_size=4, out=f"{{out}}/{{name}}") for name in metrics}}
    print(json.dumps({{name: tiny.scores_of(of) for name, of in results.items()}}))
except Exception as error:
    print(type(error).__name__, error)
"""


def run(records: Path, out: Path, late: tuple[float, float], metrics: Sequence[str]) -> list[str]:
    """What each of two processes prints, which come to the evaluation so many seconds late."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(number), str(seconds), str(records), str(out), *metrics],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, seconds in enumerate(late)
    ]
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    return [output.splitlines()[-1] for output, _ in printed]


def test_each_process_returns_the_whole_however_late_one_is(shards: Path, tmp_path: Path) -> None:
    first, second = run(shards, tmp_path, (2, 0), [*tiny.METRICS])
    assert first == second
    for metric, found in json.loads(first).items():
        for result in tiny.measure(metric, shards):
            scores = found[str(result.labels)]
            assert scores.pop("status") == result.status.tolist()
            for name, values in result.scores.items():
                np.testing.assert_allclose(scores[name], values, rtol=0, atol=1e-5, err_msg=f"{metric}, {name}")
        assert json.loads((tmp_path / metric / "summary.json").read_text())["hosts"] == 2


def test_where_one_process_fails_all_do(tmp_path: Path) -> None:
    records = [tiny.example(i) for i in range(12)]
    records[5] = b"no example"  # in the second batch, the second process's
    write_records(tmp_path / "val-0.tfrecords", records)
    first, second = run(tmp_path, tmp_path / "run", (0, 0), ["clickme"])
    assert first == "RuntimeError failed in process 1 of 2, which says why"
    assert second.startswith(f"RecordError {tmp_path}/val-0.tfrecords, record 5: not a ClickMe example")

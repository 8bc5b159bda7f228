"""Several processes of one job: late, failing, and against another job."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest
import tiny

from dcls_jax.eval.data.records import write_records
from tests.conftest import long

ANSWER = "answer: "
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
    print({ANSWER!r} + json.dumps({{name: tiny.scores_of(of) for name, of in results.items()}}))
except Exception as error:
    print({ANSWER!r} + type(error).__name__, error)
"""


def run(records: Path, out: Path, late: tuple[float, float], metrics: Sequence[str]) -> list[str]:
    """What each of two processes prints, which come to the evaluation so many seconds late."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_NUM_CPU_DEVICES": "1"}
    with ExitStack() as files:
        # Not pipes: one that is full stops its process, for which the other waits before it ends.
        outputs = [files.enter_context(TemporaryFile("w+")) for _ in late]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(port), str(number), str(seconds), str(records), str(out), *metrics],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number, (seconds, output) in enumerate(zip(late, outputs, strict=True))
        ]
        codes = [process.wait(timeout=240) for process in processes]
        printed = [(output.seek(0), output.read())[1] for output in outputs]
    assert codes == [0, 0], printed
    return [text[text.rindex(ANSWER) + len(ANSWER) :].splitlines()[0] for text in printed]


@pytest.mark.slow
@pytest.mark.as_for_users
@pytest.mark.parametrize("metrics", [("clickme", "accuracy"), long(("faithfulness", "localisation"))])
def test_each_process_returns_the_whole_however_late_one_is(
    shards: Path, tmp_path: Path, metrics: tuple[str, ...]
) -> None:
    first, second = run(shards, tmp_path, (2, 0), metrics)
    assert first == second
    for metric, found in json.loads(first).items():
        for result in tiny.measure(metric, shards):
            scores = found[str(result.labels)]
            assert scores.pop("status") == result.status.tolist()
            for name, values in result.scores.items():
                np.testing.assert_allclose(scores[name], values, rtol=0, atol=1e-5, err_msg=f"{metric}, {name}")
        assert json.loads((tmp_path / metric / "summary.json").read_text())["hosts"] == 2


@pytest.mark.long
def test_where_one_process_fails_all_do(tmp_path: Path) -> None:
    records = [tiny.example(i) for i in range(12)]
    records[5] = b"no example"  # in the second batch, the second process's
    write_records(tmp_path / "val-0.tfrecords", records)
    first, second = run(tmp_path, tmp_path / "run", (0, 0), ["clickme"])
    assert first == "RuntimeError failed in process 1 of 2, which says why"
    assert second.startswith(f"RecordError {tmp_path}/val-0.tfrecords, record 5: not a ClickMe example")

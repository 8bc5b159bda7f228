"""Records that the tests of eval/ share."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import tiny

from dcls_jax.eval import clickme
from dcls_jax.eval.data.records import write_records


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command that a test runs in this process keeps neither its signals nor what it turns off when it is stopped."""
    kept, hook = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, sys.unraisablehook
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, 15 and 5 records; record 4 of the first has a constant heatmap."""
    folder = tmp_path_factory.mktemp("clickme")
    for name, numbers in (("val-2", range(15)), ("val-10", range(15, 20))):
        write_records(folder / f"{name}.tfrecords", [tiny.example(i, constant_heatmap=i == 4) for i in numbers])
    return folder


@pytest.fixture(scope="session")
def whole(shards: Path) -> clickme.Result:
    """The undisturbed evaluation of `shards`."""
    return tiny.evaluate(shards)


@pytest.fixture(scope="session")
def run_tiny() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run tiny.py as a program of its own, on as many devices as there are here, or so many."""

    def run(
        records: Path, metrics: Sequence[str], out: Path | str = "", kill_after: str = "", devices: int = 8
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, tiny.__file__, str(records), str(out), kill_after, *metrics]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run

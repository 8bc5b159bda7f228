"""The evaluation loop: a pure step over batches on all devices, data read ahead, results kept as they come."""

import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import grain
import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import dcls_jax
from dcls_jax.compilation import compiler_options
from dcls_jax.eval.hosts import together
from dcls_jax.eval.results import Arrays, ResultsFolder

Step = Callable[[Any, dict[str, Array]], dict[str, Array]]

_REPORT_SECONDS = 10.0  # between two lines where no bar can be drawn
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg")


class Runner:
    """Applies `step` to `count` records in batches, on every device of this host and every host of the job.

    step(state, batch) -> results: a pure function, arrays with a leading batch axis in and out; a record's result must
        not depend on the batch's other records, because each device gets its share and the last batch is padded.
    state: a pytree, weights for instance; copied to every device.
    read(i) -> record i as a dict of arrays like `example`, or None where it cannot be had; called in threads.

    Raises ValueError if there are no records or the host's devices cannot share `batch_size` evenly.
    """

    def __init__(
        self,
        step: Step,
        state: Any,
        read: Callable[[int], Arrays | None],
        example: Arrays,
        count: int,
        *,
        batch_size: int,
        progress: bool = True,
    ) -> None:
        devices = jax.local_devices()
        if batch_size < 1 or batch_size % len(devices):
            raise ValueError(f"batch_size (={batch_size}) must be a multiple of this host's {len(devices)} devices")
        if count < 1:
            raise ValueError("there are no records to evaluate")
        self._nothing = {key: np.zeros_like(value) for key, value in example.items()}
        self._read, self._count, self._batch_size, self._progress = read, count, batch_size, progress
        self.seconds = 0.0

        mesh = Mesh(np.asarray(devices), ("batch",))
        everywhere, shared = PartitionSpec(), PartitionSpec("batch")
        self._weights = _fingerprint(state)
        self._state = jax.device_put(state, NamedSharding(mesh, everywhere))
        self._sharding = NamedSharding(mesh, shared)
        # each device runs the one-device program on its share: nothing to communicate, nothing for XLA to decide
        sharded = jax.shard_map(step, mesh=mesh, in_specs=(everywhere, shared), out_specs=shared, check_vma=False)
        self._lowered = jax.jit(sharded).lower(self._state, self._abstract_batch())

    def _abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            key: jax.ShapeDtypeStruct((self._batch_size, *value.shape), value.dtype, sharding=self._sharding)
            for key, value in self._nothing.items()
        }

    def identity(self) -> dict[str, Any]:
        """All that decides the numbers beside arguments and data: weights, program, versions, devices (JSON values)."""
        device = self._sharding.mesh.devices.flat[0]
        return {
            "weights": self._weights,
            "program": hashlib.sha256(self._lowered.as_text().encode()).hexdigest()[:16],
            "compiler_options": compiler_options(),
            "versions": {"python": platform.python_version(), "dcls_jax": dcls_jax.__version__}
            | {package: importlib.metadata.version(package) for package in _PACKAGES},
            "devices": f"{self._sharding.mesh.size} x {device.device_kind}",
            "hosts": jax.process_count(),
        }

    def run(self, folder: ResultsFolder | None = None) -> Arrays:
        """The results of all records, in data order; batches that `folder` has are not computed again.

        "absent" (bool) are records that could not be had, whose results are zeros.
        Raises ValueError if there are several hosts and no folder for them to meet in.
        """
        hosts, host = jax.process_count(), jax.process_index()
        if hosts > 1 and folder is None:
            raise ValueError("several hosts need a folder, on a file system that they share, for their results")
        start = time.perf_counter()
        batches = range(-(-self._count // self._batch_size))
        pending = [b for b in batches[host::hosts] if folder is None or not folder.has(b)]
        results = {}
        shown = self._progress and host == 0
        with together(), _progress_of(sum(map(self._length, pending)), shown) as advance:
            for batch, arrays in self._compute(pending):
                if folder is None:
                    results[batch] = arrays
                else:
                    folder.save(batch, arrays)
                advance(self._length(batch))
        if folder is not None:
            results = {batch: folder.read(batch, self._length(batch)) for batch in batches}
        self.seconds = time.perf_counter() - start
        return {key: np.concatenate([results[batch][key] for batch in batches]) for key in results[0]}

    def _length(self, batch: int) -> int:
        return min(self._batch_size, self._count - batch * self._batch_size)

    def _compute(self, pending: list[int]) -> Iterator[tuple[int, Arrays]]:
        """Results by batch; a batch is on its way to the devices before the one before it is waited for."""
        if not pending:
            return
        step, previous = self._lowered.compile(compiler_options=dict(compiler_options())), None
        for batch, absent, arrays in self._batches(pending):
            results = step(self._state, jax.device_put(arrays, self._sharding)) if arrays else self._no_results()
            running = batch, absent, results
            if previous is not None:
                yield self._fetch(*previous)
            previous = running
        assert previous is not None
        yield self._fetch(*previous)

    def _no_results(self) -> Arrays:
        return {key: np.zeros(info.shape, info.dtype) for key, info in self._lowered.out_info.items()}

    def _fetch(self, batch: int, absent: np.ndarray, results: dict[str, Array] | Arrays) -> tuple[int, Arrays]:
        arrays = {key: np.array(value)[: len(absent)] for key, value in results.items()}
        for array in arrays.values():
            array[absent] = 0
        return batch, arrays | {"absent": absent}

    def _batches(self, pending: list[int]) -> Iterator[tuple[int, np.ndarray, Arrays | None]]:
        """Batches, each with which of its records are absent; None if that is every one."""
        numbers = [b * self._batch_size + i for b in pending for i in range(self._length(b))]
        threads = grain.ReadOptions(num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * self._batch_size)
        read = grain.MapDataset.source(numbers).map(lambda i: (self._read(i),))  # of a bare None grain makes no element
        records = iter(read.to_iter_dataset(threads))
        for batch in pending:
            rows = [row for (row,) in islice(records, self._length(batch))]
            yield batch, np.array([row is None for row in rows]), self._stacked(rows) if any(rows) else None

    def _stacked(self, rows: list[Arrays | None]) -> Arrays:
        filled = [self._nothing if row is None else row for row in rows]
        return {key: _padded([row[key] for row in filled], self._batch_size) for key in self._nothing}


def _padded(rows: list[np.ndarray], length: int) -> np.ndarray:
    """The rows as one array of that length, zeros after them; written once, for these are megabytes a record."""
    batch = np.empty((length, *rows[0].shape), rows[0].dtype)
    np.stack(rows, out=batch[: len(rows)])
    batch[len(rows) :] = 0
    return batch


def _fingerprint(state: Any) -> str:
    """Hash of names, types, shapes and values of a pytree's arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        array = np.asarray(values)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


class _Speed(ProgressColumn):
    """Records per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} records/s" if task.speed else "")


@contextmanager
def _progress_of(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of records just done: draws a bar, or prints lines if there is no terminal."""
    if not shown or not total:
        yield lambda _: None
    elif sys.stderr.isatty():
        columns = BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn(), TextColumn("left")
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _lines(total)


def _lines(total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or done == total:
            last, speed = now, done / max(now - start, 1e-9)
            left = (total - done) / speed
            print(f"{done}/{total} records, {speed:.1f} records/s, {left:.0f} s left", file=sys.stderr, flush=True)

    return advance

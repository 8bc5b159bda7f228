"""The evaluation loop: a pure step over batches on all devices, data read ahead, results kept as they come."""

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dcls_jax
from dcls_jax.compilation import compiler_options
from dcls_jax.eval.hosts import together
from dcls_jax.eval.progress import progress_of
from dcls_jax.eval.results import Arrays, ResultsFolder
from dcls_jax.eval.status import Scores, Status

Step = Callable[[Any, Any], Any]
Results = dict[str, Scores]

FORMAT = 3  # of what results folders hold
LABEL = "label"  # their column of classes
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg")


class Row(NamedTuple):
    """What is read of a record: an array pytree for the step, what is set aside for `OnHost`, its class or -1."""

    record: Any
    aside: Any = None
    label: int = -1


Rows = list[Row | Status]  # of one batch; a status says why there is no record


@dataclass(frozen=True)
class OnHost:
    """The part of a metric that is no jitted function of arrays, because each picture has a size of its own, say.

    score(output, aside) -> {name: Scores}: of one record, from the step's output, without the batch axis, and what the
    reader set aside for it. blank: such scores of zeros, which tell names and shapes.
    """

    score: Callable[[Any, Any], Results]
    blank: Results


class Runner:
    """Applies `step` to `count` records in batches, on every device of this host and every host of the job.

    step(state, batch) -> {name: Scores}: a pure function, pytrees of arrays with a leading batch axis in and out; a
        record's result must not depend on the batch's other records, because each device gets its share and the last
        batch is padded. With `on_host` it may give anything, of which that makes scores.
    state: a pytree, weights for instance; copied to every device.
    read(i) -> record i, a pytree of arrays like `blank`, in its row; or a status other than counted, which says why
        there is none. Called in threads.

    Raises ValueError if there are no records or the host's devices cannot share `batch_size` evenly.
    """

    def __init__(
        self,
        step: Step,
        state: Any,
        read: Callable[[int], Row | Status],
        blank: Any,
        count: int,
        *,
        batch_size: int,
        on_host: OnHost | None = None,
        progress: bool = True,
    ) -> None:
        devices = jax.local_devices()
        if batch_size < 1 or batch_size % len(devices):
            raise ValueError(f"batch_size (={batch_size}) must be a multiple of this host's {len(devices)} devices")
        if count < 1:
            raise ValueError("there are no records to evaluate")
        self._blank = jax.tree.map(np.zeros_like, blank)
        self._read, self._count, self._batch_size, self._progress = read, count, batch_size, progress
        self._on_host = on_host
        self.seconds = 0.0
        self.classes = np.full(count, -1, np.int32)

        mesh = Mesh(np.asarray(devices), ("batch",))
        everywhere, shared = PartitionSpec(), PartitionSpec("batch")
        self._weights = _fingerprint(state)
        self._state = jax.device_put(state, NamedSharding(mesh, everywhere))
        self._sharding = NamedSharding(mesh, shared)
        # each device runs the one-device program on its share: nothing to communicate, nothing for XLA to decide
        sharded = jax.shard_map(step, mesh=mesh, in_specs=(everywhere, shared), out_specs=shared, check_vma=False)
        self._lowered = jax.jit(sharded).lower(self._state, jax.tree.map(self._shape_of, self._blank))
        blank_scores = jax.tree.map(self._row_of_zeros, self._lowered.out_info) if on_host is None else on_host.blank
        self._no_scores: Results = jax.tree.map(np.asarray, blank_scores)

    def _shape_of(self, value: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self._batch_size, *value.shape), value.dtype, sharding=self._sharding)

    def _row_of_zeros(self, info: Any) -> np.ndarray:
        return np.zeros(info.shape[1:], info.dtype)

    def identity(self) -> dict[str, Any]:
        """All that decides the numbers beside arguments and data: weights, program, versions, devices (JSON values)."""
        device = self._sharding.mesh.devices.flat[0]
        return {
            "format": FORMAT,
            "weights": self._weights,
            "program": hashlib.sha256(self._lowered.as_text().encode()).hexdigest()[:16],
            "compiler_options": compiler_options(),
            "versions": {"python": platform.python_version(), "dcls_jax": dcls_jax.__version__}
            | {package: importlib.metadata.version(package) for package in _PACKAGES},
            "devices": f"{self._sharding.mesh.size} x {device.device_kind}",
            "hosts": jax.process_count(),
        }

    def run(self, folder: ResultsFolder | None = None) -> Results:
        """The results of all records, in data order; batches that `folder` has are not computed again.

        What took how long, and the records' classes, are in `seconds` and `classes` afterwards.
        Records that could not be had have the status that the reader gave, and zeros.
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
        with together(), progress_of(sum(map(self._length, pending)), shown) as advance:
            for batch, arrays in self._compute(pending):
                if folder is None:
                    results[batch] = arrays
                else:
                    folder.save(batch, arrays)
                advance(self._length(batch))
        if folder is not None:
            results = {batch: folder.read(batch, self._length(batch)) for batch in batches}
        self.seconds = time.perf_counter() - start
        columns = {key: np.concatenate([results[batch][key] for batch in batches]) for key in results[0]}
        self.classes = columns.pop(LABEL)
        return self._nested(columns)

    def _nested(self, arrays: Arrays) -> Results:
        return {
            name: Scores({value: arrays[f"{name}.{value}"] for value in values}, arrays[f"{name}.status"])
            for name, (values, _) in self._no_scores.items()
        }

    def _length(self, batch: int) -> int:
        return min(self._batch_size, self._count - batch * self._batch_size)

    def _compute(self, pending: list[int]) -> Iterator[tuple[int, Arrays]]:
        """Results by batch; a batch is on its way to the devices before the one before it is waited for."""
        if not pending:
            return
        step, previous = self._lowered.compile(compiler_options=dict(compiler_options())), None
        for batch, rows, arrays in self._batches(pending):
            running = batch, rows, None if arrays is None else step(self._state, self._put(arrays))
            if previous is not None:
                yield self._fetch(*previous)
            previous = running
        assert previous is not None
        yield self._fetch(*previous)

    def _put(self, arrays: Any) -> Any:
        return jax.device_put(arrays, self._sharding)

    def _fetch(self, batch: int, rows: Rows, outputs: Any | None) -> tuple[int, Arrays]:
        """The scores of a batch's rows, once its outputs are there, none where it held no record, and their classes."""
        fetched = jax.tree.map(np.asarray, outputs)
        scores = [
            _without_record(self._no_scores, row)
            if isinstance(row, Status)
            else self._scored(jax.tree.map(itemgetter(i), fetched), row.aside)
            for i, row in enumerate(rows)
        ]
        stacked = jax.tree.map(lambda like, *values: np.stack(values).astype(like.dtype), self._no_scores, *scores)
        labels = [-1 if isinstance(row, Status) else row.label for row in rows]
        return batch, _flat(stacked) | {LABEL: np.array(labels, np.int32)}

    def _scored(self, output: Any, aside: Any) -> Results:
        return output if self._on_host is None else self._on_host.score(output, aside)

    def _batches(self, pending: list[int]) -> Iterator[tuple[int, Rows, Any | None]]:
        """Batches, each with its rows; None for the arrays if no row holds a record."""
        numbers = [b * self._batch_size + i for b in pending for i in range(self._length(b))]
        threads = grain.ReadOptions(num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * self._batch_size)
        read = grain.MapDataset.source(numbers).map(lambda i: (self._read(i),))  # of a bare None grain makes no element
        records = iter(read.to_iter_dataset(threads))
        for batch in pending:
            rows = [row for (row,) in islice(records, self._length(batch))]
            yield batch, rows, None if all(isinstance(row, Status) for row in rows) else self._stacked(rows)

    def _stacked(self, rows: Rows) -> Any:
        filled = [self._blank if isinstance(row, Status) else row.record for row in rows]
        return jax.tree.map(lambda *values: _padded(values, self._batch_size), *filled)


def _without_record(blank: Results, status: Status) -> Results:
    return {name: Scores(values, np.int8(status.code)) for name, (values, _) in blank.items()}


def _flat(results: Results) -> Arrays:
    """As a results folder holds them: "name.value", and "name.status"."""
    return {
        f"{name}.{column}": array
        for name, (values, status) in results.items()
        for column, array in {**values, "status": status}.items()
    }


def _padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
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

"""A pure step over batches of records, compiled for all devices of this host, and what comes of it for each record."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dcls_jax
from dcls_jax import memory
from dcls_jax.compilation import compiler_options
from dcls_jax.eval.results import Arrays
from dcls_jax.eval.status import Scores, Status

Step = Callable[[Any, Any], Any]
Results = dict[str, Scores]

FORMAT = 4  # of what results folders hold
LABEL = "label"  # their column of classes
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg")


def versions() -> dict[str, str]:
    """Those of all that may decide a number."""
    own = {"python": platform.python_version(), "dcls_jax": dcls_jax.__version__}
    return own | {package: importlib.metadata.version(package) for package in _PACKAGES}


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


class Task(NamedTuple):
    """What a program computes for one metric.

    step(state, batch) -> {name: Scores}: a pure function, pytrees of arrays with a leading batch axis in and out; a
    record's result must not depend on the batch's other records, because each device gets its share and the last batch
    is padded. With `on_host` it may give anything, of which that makes scores.
    """

    step: Step
    on_host: OnHost | None = None


class Program:
    """The steps of tasks over batches of the same records, with the same state: XLA computes once what they share.

    state: a pytree, weights for instance; copied to every device. blank: a record, of zeros. `peak`: the bytes that it
    holds at most on each device, once it is compiled, where the platform tells.
    Raises ValueError if the host's devices cannot share `batch_size` evenly.
    """

    def __init__(self, tasks: Sequence[Task], state: Any, blank: Any, *, batch_size: int) -> None:
        devices = jax.local_devices()
        if batch_size < 1 or batch_size % len(devices):
            raise ValueError(f"batch_size (={batch_size}) must be a multiple of this host's {len(devices)} devices")
        self._blank = jax.tree.map(np.zeros_like, blank)
        self._tasks, self.batch_size = tasks, batch_size

        mesh = Mesh(np.asarray(devices), ("batch",))
        self._weights = _fingerprint(state)
        self._state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        self._sharding = NamedSharding(mesh, PartitionSpec("batch"))
        self.peak: int | None = None

        def step(state: Any, batch: Any) -> list[Any]:
            return [task.step(state, batch) for task in tasks]

        shapes = jax.tree.map(self._shape_of, self._blank)
        self._lowered = jax.jit(each_on_its_share(step, mesh)).lower(self._state, shapes)
        self._no_scores: list[Results] = [
            jax.tree.map(
                np.asarray, jax.tree.map(self._row_of_zeros, info) if task.on_host is None else task.on_host.blank
            )
            for task, info in zip(tasks, self._lowered.out_info, strict=True)
        ]

    def _shape_of(self, value: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch_size, *value.shape), value.dtype, sharding=self._sharding)

    def _row_of_zeros(self, info: Any) -> np.ndarray:
        return np.asarray(np.zeros(info.shape[1:], info.dtype))

    def identity(self) -> dict[str, Any]:
        """All that decides the numbers beside arguments and data: weights, program, versions, devices (JSON values)."""
        device = self._sharding.mesh.devices.flat[0]
        return {
            "format": FORMAT,
            "weights": self._weights,
            "program": hashlib.sha256(self._lowered.as_text().encode()).hexdigest()[:16],
            "compiler_options": compiler_options(),
            "versions": versions(),
            "devices": f"{self._sharding.mesh.size} x {device.device_kind}",
            "hosts": jax.process_count(),
        }

    @cached_property
    def _compiled(self) -> Any:
        with memory.saying(*self._size):
            compiled = self._lowered.compile(compiler_options=dict(compiler_options()))
        self.peak = memory.peak(compiled)
        if self.peak is not None:
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state))
            memory.check_fits(self.peak - held, self._sharding.mesh.devices.flat[0], *self._size)
        return compiled

    @property
    def _size(self) -> tuple[str, str]:
        """What is too large where a device has no room, and what to lower."""
        return f"a batch of {self.batch_size}", "batch_size (--batch-size)"

    def compile(self) -> None:
        """Do now what the first batch would wait for. Raises TooLargeError where a device has no room for a batch."""
        self._compiled  # noqa: B018

    def start(self, rows: Rows) -> Any | None:
        """Send a batch to the devices: outputs to come, or None where no row holds a record."""
        return None if all(isinstance(row, Status) for row in rows) else self.run(self.stacked(rows))

    def stacked(self, rows: Rows) -> Any:
        """A batch of rows, zeros where there is no record."""
        filled = [self._blank if isinstance(row, Status) else row.record for row in rows]
        return jax.tree.map(lambda *values: padded(values, self.batch_size), *filled)

    def run(self, batch: Any) -> Any:
        """The outputs of the step, on their way."""
        with memory.saying(*self._size):
            return self._compiled(self._state, self.sent(batch))

    def sent(self, batch: Any) -> Any:
        """A batch on the devices, or on its way there."""
        return jax.device_put(batch, self._sharding)

    def finish(self, rows: Rows, outputs: Any | None) -> list[Arrays]:
        """Of each task the columns of a batch's rows, once its outputs are there: scores, status and classes.

        Records that could not be had have the status that the reader gave, and zeros.
        """
        with memory.saying(*self._size):  # where it is the device that says so, later
            of_tasks = [None] * len(self._tasks) if outputs is None else jax.tree.map(np.asarray, outputs)
        labels = np.array([-1 if isinstance(row, Status) else row.label for row in rows], np.int32)
        return [
            _columns(blank, [self._scored(task, blank, output, i, row) for i, row in enumerate(rows)]) | {LABEL: labels}
            for task, blank, output in zip(self._tasks, self._no_scores, of_tasks, strict=True)
        ]

    def _scored(self, task: Task, blank: Results, output: Any, index: int, row: Row | Status) -> Results:
        if isinstance(row, Status):
            return {name: Scores(values, np.int8(row.code)) for name, (values, _) in blank.items()}
        own = jax.tree.map(itemgetter(index), output)
        return own if task.on_host is None else task.on_host.score(own, row.aside)

    def nested(self, task: int, columns: Arrays) -> Results:
        """The scores of a task, from columns as `finish` gives them."""
        return {
            name: Scores({value: columns[f"{name}.{value}"] for value in values}, columns[f"{name}.status"])
            for name, (values, _) in self._no_scores[task].items()
        }


def each_on_its_share(step: Step, mesh: Mesh) -> Step:
    """A step in which each device of a mesh with the axis "batch" runs the one-device program on its part of the batch.

    There is nothing to communicate, and nothing for XLA to decide.
    """
    everywhere, shared = PartitionSpec(), PartitionSpec("batch")
    return jax.shard_map(step, mesh=mesh, in_specs=(everywhere, shared), out_specs=shared, check_vma=False)


def compile_all(programs: Sequence[Program]) -> None:
    """Compile programs side by side: much of the compiler's work is done in one thread each.

    On a GPU one after another: there XLA times kernels against each other, and two such searches wait for one another
    until a time limit (https://github.com/openxla/xla/pull/41399).
    """
    with ThreadPoolExecutor(1 if jax.default_backend() == "gpu" else os.cpu_count()) as threads:
        list(threads.map(lambda program: program.compile(), programs))


def _columns(blank: Results, scores: Sequence[Results]) -> Arrays:
    """As a results folder holds them: "name.value", and "name.status"."""
    stacked = jax.tree.map(lambda like, *values: np.stack(values).astype(like.dtype), blank, *scores)
    return {
        f"{name}.{column}": array
        for name, (values, status) in stacked.items()
        for column, array in {**values, "status": status}.items()
    }


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
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

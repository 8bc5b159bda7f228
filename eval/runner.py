"""The evaluation loop: programs over the batches of one data set, data read ahead, results kept as they come."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from dcls_jax.eval.hosts import together
from dcls_jax.eval.program import LABEL, Program, Results, Row, Rows, compile_all
from dcls_jax.eval.progress import progress_of
from dcls_jax.eval.results import Arrays, ResultsFolder
from dcls_jax.eval.status import Status

Read = Callable[[int], Sequence[Row | Status]]  # record i as each program has it


class Outcome(NamedTuple):
    """What came of one task: scores and classes of all records in data order, and how long the pass took."""

    scores: Results
    classes: np.ndarray
    seconds: float


def run_together(
    programs: Sequence[Program],
    read: Read,
    count: int,
    folders: Sequence[Sequence[ResultsFolder | None]],
    *,
    progress: bool = True,
) -> list[list[Outcome]]:
    """The outcome of each task of each program on `count` records, each read once for all.

    read(i) -> for each program record i, a pytree of arrays like its `blank`, in its row; or a status other than
    counted, which says why there is none. Called in threads.
    folders: one for each task; batches that it has are not computed again for it.
    Raises ValueError if there are no records, or several hosts and no folder for them to meet in.
    """
    if count < 1:
        raise ValueError("there are no records to evaluate")
    hosts, host = jax.process_count(), jax.process_index()
    if hosts > 1 and any(folder is None for of_tasks in folders for folder in of_tasks):
        raise ValueError("several hosts need a folder, on a file system that they share, for their results")
    start, size = time.perf_counter(), programs[0].batch_size
    lengths = [min(size, count - first) for first in range(0, count, size)]
    pending = _pending(range(len(lengths))[host::hosts], folders)
    kept: dict[tuple[int, int], dict[int, Arrays]] = {}  # of tasks without a folder
    total = sum(lengths[batch] * len(waiting) for batch, waiting in pending.items())
    with together(), progress_of(total, progress and host == 0) as advance:
        for batch, place, columns in _computed(programs, pending, _rows(pending, read, lengths, size)):
            for task, (folder, arrays) in enumerate(zip(folders[place], columns, strict=True)):
                if folder is None:
                    kept.setdefault((place, task), {})[batch] = arrays
                elif not folder.has(batch):
                    folder.save(batch, arrays)
            advance(lengths[batch])

    def outcome(place: int, task: int, folder: ResultsFolder | None) -> Outcome:
        own = kept[place, task] if folder is None else {b: folder.read(b, length) for b, length in enumerate(lengths)}
        columns = {name: np.concatenate([own[batch][name] for batch in range(len(lengths))]) for name in own[0]}
        classes = columns.pop(LABEL)
        return Outcome(programs[place].nested(task, columns), classes, time.perf_counter() - start)

    return [
        [outcome(place, task, folder) for task, folder in enumerate(of_tasks)] for place, of_tasks in enumerate(folders)
    ]


def _pending(batches: Sequence[int], folders: Sequence[Sequence[ResultsFolder | None]]) -> dict[int, list[int]]:
    """Which programs have not done a batch, by batch."""
    waiting = {
        batch: [
            place
            for place, of_tasks in enumerate(folders)
            if any(folder is None or not folder.has(batch) for folder in of_tasks)
        ]
        for batch in batches
    }
    return {batch: places for batch, places in waiting.items() if places}


def _rows(
    pending: Mapping[int, list[int]], read: Read, lengths: Sequence[int], size: int
) -> Iterator[tuple[int, Sequence[Rows]]]:
    """Batches with the rows that each program has of it, read ahead."""
    numbers = [batch * size + i for batch in pending for i in range(lengths[batch])]
    threads = grain.ReadOptions(num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * size)
    records = iter(grain.MapDataset.source(numbers).map(lambda i: (read(i),)).to_iter_dataset(threads))
    for batch in pending:
        rows = [row for (row,) in islice(records, lengths[batch])]
        yield batch, [list(of_program) for of_program in zip(*rows, strict=True)]


def _computed(
    programs: Sequence[Program], pending: Mapping[int, list[int]], batches: Iterator[tuple[int, Sequence[Rows]]]
) -> Iterator[tuple[int, int, list[Arrays]]]:
    """Columns by batch and program; a batch is on its way to the devices before the one before it is waited for."""
    compile_all([programs[place] for place in sorted({place for places in pending.values() for place in places})])
    previous: list[tuple[int, int, Rows, Any]] = []
    for batch, rows in batches:
        running = [(batch, place, rows[place], programs[place].start(rows[place])) for place in pending[batch]]
        yield from _fetched(programs, previous)
        previous = running
    yield from _fetched(programs, previous)


def _fetched(
    programs: Sequence[Program], running: Sequence[tuple[int, int, Rows, Any]]
) -> Iterator[tuple[int, int, list[Arrays]]]:
    for batch, place, rows, outputs in running:
        yield batch, place, programs[place].finish(rows, outputs)

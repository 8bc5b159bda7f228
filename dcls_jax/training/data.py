"""Batches of augmented pictures in an order that seed and step alone decide, so that a run can go on.

Each epoch goes once over the records, shuffled anew, without the last ones where these do not fill a batch. What
happens to the picture in row r of the batch of step s is drawn from a generator of (seed, s, r). Each process of a job
reads its own rows of every batch, so that neither processes, threads nor workers change what a step sees.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from absl import flags
from PIL import Image

from dcls_jax.training.augmentation import Augmentation


class Pictures(Protocol):
    """Records by number, each with an `image` (H, W, 3) uint8 and a `label`; read by several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Batch(NamedTuple):
    """Pictures in A parts: images (A, B, side, side, 3) uint8, labels (A, B) int32, what is erased (A, B, 4) int32."""

    images: Any
    labels: Any
    erased: Any


@dataclass(frozen=True)
class Rows:
    """Which pictures of a batch a process reads: `batch_size` pictures in `accumulate` parts, each shared by all.

    Raises ValueError where these do not divide.
    """

    batch_size: int
    accumulate: int = 1
    processes: int = 1
    process: int = 0

    def __post_init__(self) -> None:
        shares = self.accumulate * self.processes
        if self.batch_size < 1 or shares < 1 or self.batch_size % shares:
            raise ValueError(
                f"batch_size (={self.batch_size}) must be a multiple of accumulate (={self.accumulate}) x processes "
                f"({self.processes})"
            )

    @property
    def per_part(self) -> int:
        """How many of its rows are in each part of a batch."""
        return self.batch_size // (self.accumulate * self.processes)

    @property
    def own(self) -> int:
        """How many rows it reads of each batch."""
        return self.accumulate * self.per_part

    def global_row(self, number: int) -> int:
        """Where its picture `number`, counted over all its batches, is in the order of all pictures of the run."""
        part, row = divmod(number, self.per_part)
        return (part * self.processes + self.process) * self.per_part + row


class Reading(NamedTuple):
    """threads: that read and augment in each worker. workers: processes of their own that do so; 0 for none."""

    threads: int = min(16, os.cpu_count() or 1)
    workers: int = 0


class _Load:
    """Picture `number` of a process, augmented; a class, so that it can be sent to workers."""

    def __init__(
        self,
        order: grain.MapDataset[int],
        whole: int,
        pictures: Pictures,
        augment: Augmentation,
        rows: Rows,
        seed: int,
    ):
        self.order, self.whole, self.pictures, self.augment = order, whole, pictures, augment
        self.rows, self.seed = rows, seed

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = self.rows.global_row(number)
        epoch, within = divmod(place, self.whole)  # not by a slice, which in older versions of grain repeats the first
        sample = self.pictures[self.order[epoch * len(self.order) + within]]
        rng = np.random.default_rng((self.seed, *divmod(place, self.rows.batch_size)))
        image, erased = self.augment(Image.fromarray(sample.image), rng)
        return image, np.asarray(sample.label, np.int32), erased


def steps_per_epoch(pictures: Pictures, batch_size: int) -> int:
    """Full batches of one epoch. Raises ValueError where there is none."""
    if not len(pictures) // batch_size:
        raise ValueError(f"batch_size (={batch_size}) must be at most the number of pictures, {len(pictures)}")
    return len(pictures) // batch_size


def batches(
    pictures: Pictures,
    augment: Augmentation,
    rows: Rows,
    *,
    seed: int,
    start: int,
    stop: int,
    reading: Reading = Reading(),  # noqa: B008
) -> Iterator[Batch]:
    """A process's rows of the batches of steps `start` to `stop` - 1, read ahead.

    Raises ValueError for fewer pictures than a batch, and what `pictures` raise.
    """
    whole = steps_per_epoch(pictures, rows.batch_size) * rows.batch_size
    order = grain.MapDataset.range(len(pictures)).shuffle(seed=seed)
    load = _Load(order, whole, pictures, augment, rows, seed)
    ahead = max(2 * rows.own // max(1, reading.workers), reading.threads)
    dataset = (
        grain.MapDataset.range(start * rows.own, stop * rows.own)
        .map(load)
        .to_iter_dataset(grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=ahead))
    )
    if reading.workers:  # before batches are made, so that the order does not depend on them
        flags.FLAGS.mark_as_parsed()  # grain's workers ask for absl's, of which there are none
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(reading.workers, per_worker_buffer_size=ahead))
    shape = (rows.accumulate, rows.per_part)
    for columns in dataset.batch(rows.own):
        yield Batch(*(column.reshape(*shape, *column.shape[1:]) for column in columns))

"""The order of pictures and what happens to them: by seed and step, whoever reads them and wherever a run begins."""

from typing import NamedTuple

import numpy as np
import pytest

from dcls_jax.training.augmentation import Augmentation
from dcls_jax.training.data import Reading, Rows, batches, steps_per_epoch
from tests.conftest import slow

AUGMENT = Augmentation(size=12)


class Sample(NamedTuple):
    image: np.ndarray
    label: int


class Noise:
    """Pictures of noise, each of the class of its number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        return Sample(rng.integers(0, 255, (20 + index % 3, 18, 3), np.uint8), index)


def read(rows: Rows, start: int = 0, stop: int = 5, reading: Reading = Reading(2), seed: int = 3, count: int = 19):  # noqa: B008
    return list(batches(Noise(count), AUGMENT, rows, seed=seed, start=start, stop=stop, reading=reading))


def test_each_epoch_has_each_picture_at_most_once_in_another_order() -> None:
    labels = np.concatenate([batch.labels.ravel() for batch in read(Rows(6), stop=6)])
    assert steps_per_epoch(Noise(19), 6) == 3
    first, second = labels[:18], labels[18:]
    assert len(set(first)) == len(set(second)) == 18
    assert (first != second).any()
    assert set(first) != set(range(18))  # it is not always the last that is left out
    assert (np.concatenate([batch.labels.ravel() for batch in read(Rows(6), stop=3, seed=4)]) != first).any()


def test_a_later_start_goes_on_as_from_the_beginning() -> None:
    whole, later = read(Rows(6), stop=8), read(Rows(6), start=4, stop=8)
    for expected, found in zip(whole[4:], later, strict=True):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)
    # the same picture in another epoch is seen otherwise
    images = {}
    for batch in whole:
        for label, image in zip(batch.labels.ravel(), batch.images[0], strict=True):
            images.setdefault(int(label), []).append(image)
    assert any((first != second).any() for first, second, *_ in (of for of in images.values() if len(of) > 1))


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 2), (3, 2), slow(6, 1)])
def test_processes_and_parts_share_the_same_batch(accumulate: int, processes: int) -> None:
    whole = read(Rows(12), stop=3)
    parts = [read(Rows(12, accumulate, processes, process), stop=3) for process in range(processes)]
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        for expected, *found in zip(batch, *shares, strict=True):
            joined = np.concatenate(found, axis=1)
            assert joined.shape[:2] == (accumulate, 12 // accumulate)
            np.testing.assert_array_equal(joined.reshape(expected.shape), expected)


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    alone, helped = read(Rows(6, 2)), read(Rows(6, 2), reading=Reading(2, workers=2))
    for expected, found in zip(alone, helped, strict=True):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_does_not_divide() -> None:
    with pytest.raises(
        ValueError, match=r"batch_size \(=10\) must be a multiple of accumulate \(=3\) x processes \(2\)"
    ):
        Rows(10, 3, 2)
    with pytest.raises(ValueError, match=r"batch_size \(=32\) must be at most the number of pictures, 19"):
        steps_per_epoch(Noise(19), 32)

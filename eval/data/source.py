"""What every source of samples can do, and any sequence as a source."""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from dcls_jax.eval.data.records import RecordError

S_co = TypeVar("S_co", covariant=True)


class Samples(Protocol[S_co]):
    """Samples by number, read by several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> S_co: ...


@runtime_checkable
class Source(Protocol[S_co]):
    """Samples that know where they come from; one that cannot be read raises RecordError, which says where it is."""

    @property
    def damage(self) -> Sequence[str]:
        """A line for each place that samples were lost at, which have no number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> S_co: ...

    def place(self, index: int, /) -> str:
        """Where a sample is, as messages say it: the file, and its number there."""

    def identity(self) -> Any:
        """What tells these data from others, as JSON values: names and sizes of files."""


class Listed(Generic[S_co]):
    """Any sequence of samples as a source: it is told from others by its type and length alone."""

    damage: Sequence[str] = ()

    def __init__(self, samples: Samples[S_co]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> S_co:
        return self._samples[index]

    def place(self, index: int) -> str:
        return f"sample {index}"

    def identity(self) -> Any:
        return {"samples": type(self._samples).__name__, "records": len(self)}


class First(Generic[S_co]):
    """The first so many samples of a source."""

    def __init__(self, source: Source[S_co], count: int) -> None:
        self._source, self._count, self.damage = source, count, source.damage

    def __len__(self) -> int:
        return min(self._count, len(self._source))

    def __getitem__(self, index: int) -> S_co:
        return self._source[index]

    def place(self, index: int) -> str:
        return self._source.place(index)

    def identity(self) -> Any:
        return {"first": len(self), "of": self._source.identity()}


@runtime_checkable
class Located(Source[S_co], Protocol[S_co]):
    """Samples with regions of their objects, `sample.regions` by class, that are counted without their pictures."""

    def region_count(self, index: int, /) -> int:
        """How many regions a sample has; one of those that cannot be read, so that it is met."""


class _FirstLocated(First[S_co]):
    _source: Located[S_co]

    def region_count(self, index: int) -> int:
        return self._source.region_count(index)


def first(source: Source[S_co], count: int) -> Source[S_co]:
    """The first so many samples of a source, located ones where it has such."""
    return (_FirstLocated if isinstance(source, Located) else First)(source, count)


def as_source(samples: Samples[S_co]) -> Source[S_co]:
    """The samples themselves where they are a source, else `Listed`."""
    return samples if isinstance(samples, Source) else Listed(samples)


def class_of(sample: Any) -> int:
    """The class of a sample: its `label`, or of a tuple (image, label, ...) the second; -1 where it has no such."""
    label = getattr(sample, "label", sample[1] if isinstance(sample, tuple) and len(sample) > 1 else None)
    return int(label) if isinstance(label, int | np.integer) else -1


def check_label(label: int, classes: int) -> None:
    """Raise RecordError for a label that is none of the model's classes; whoever reads the sample says where it is."""
    if not 0 <= label < classes:
        raise RecordError(f"label {label}, but the model has classes 0 to {classes - 1}")

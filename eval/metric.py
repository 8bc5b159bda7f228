"""A metric as data, and all that its evaluation needs beside it: settings, results, and the run that leads to them.

A metric says what it makes of a sample, what the model makes of that, and what is said of all scores together. Reading,
batches, devices, resuming, what could not be read, summaries and tables are the same for all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from dcls_jax.cam.masks import chosen_convention
from dcls_jax.eval.program import OnHost
from dcls_jax.eval.results import check_writable
from dcls_jax.eval.status import Status
from dcls_jax.files import AnyPath, as_path
from dcls_jax.freezing import freeze
from dcls_jax.models import Backbone, Transform

P = TypeVar("P")  # a preset
S = TypeVar("S")  # a sample, as its source has it
T = TypeVar("T")
R = TypeVar("R")  # a record: a pytree of arrays, what the model and the metric see of a sample
Summarise = Callable[[Mapping[str, np.ndarray]], Mapping[str, float]]


@dataclass(frozen=True)
class Settings:
    """How an evaluation goes, whatever it measures.

    transform: what the model sees of a picture; the model's own unless given.
    batch_size: over all devices of a host together; part of what makes a run repeatable to the bit.
    out: a folder for the results as they come; the same call goes on where a killed one stopped. Needed on many hosts.
    skip_bad: count records that cannot be read and go on, instead of RecordError.
    name: what reports call the model; its class unless given.

    Raises OSError where `out` cannot be written.
    """

    transform: Transform | None = None
    batch_size: int = 32
    out: AnyPath | None = None
    skip_bad: bool = False
    name: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.out is not None:
            check_writable(as_path(self.out))

    def transform_of(self, model: Backbone) -> Transform:
        """What this model sees of a picture."""
        return model.transform if self.transform is None else self.transform

    def name_of(self, model: Backbone) -> str:
        """What reports call this model."""
        return type(model).__name__ if self.name is None else self.name


@dataclass(frozen=True)
class Metric(Generic[S, R]):
    """What one evaluation measures.

    name: as `run.json` has it. title: as tables have it.
    variant: what the names of its scores are, "protocol" say. variants: all of them, a result each, in order, with what
        is said of the values (n, ...) of the n records that count, n maybe 0, as names with values.
    labels: what else tells its results from others, such as the method. options: what else decides its numbers (JSON
        values), beside model, data and settings.
    blank: a record, of zeros.
    prepare(sample) -> record, or a status that says why there is none; RecordError for a sample that is wrong, without
        where it is. Called in threads.
    step(model, records) -> {variant: Scores}: a pure function of arrays, jitted and cut among devices; see `Task`.
    held(model) -> what every device holds of it, and `step` is handed: the model with its kernels constructed. See
        `frozen_for`.
    on_host, aside: see `OnHost`, and what is set aside of a sample for it.
    """

    name: str
    title: str
    variant: str
    variants: Mapping[str, Summarise]
    blank: R
    prepare: Callable[[S], R | Status]
    step: Callable[[Any, R], Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    held: Callable[[Any], nnx.Module] = freeze
    on_host: OnHost | None = None
    aside: Callable[[S], Any] = lambda _: None


@dataclass(frozen=True)
class Result:
    """What one model reached: a row of a table, and an entry of `summary.json`.

    title: what was measured. name: the model's. labels: what else tells it from other rows. values: by name.
    scores: of each record, by name, (n, ...) in data order, NaN where it does not count. status: why, the codes (n,).
    bad_records: one line for each record that could not be read, and for each place that records were lost at.
    seconds: of the pass over the data. classes: of each record (n,), -1 where it has none or could not be read.
    """

    title: str
    name: str
    labels: Mapping[str, str]
    values: Mapping[str, float]
    scores: Mapping[str, np.ndarray]
    status: np.ndarray
    bad_records: tuple[str, ...]
    seconds: float
    classes: np.ndarray

    @property
    def counted(self) -> int:
        """How many records count."""
        return int((self.status == Status.COUNTED.code).sum())

    @property
    def left_out(self) -> dict[Status, int]:
        """How many do not, by why."""
        numbers = Counter(self.status.tolist())
        return {s: numbers[s.code] for s in Status if s is not Status.COUNTED and numbers[s.code]}

    def summary(self) -> dict[str, Any]:
        """As JSON values, without the scores of single records."""
        about = {"title": self.title, "labels": dict(self.labels)}
        numbers = {"counted": self.counted, "left_out": {str(status): n for status, n in self.left_out.items()}}
        return about | {**self.values, **numbers, "bad_records": list(self.bad_records), "seconds": self.seconds}


def frozen_for(transform: Transform) -> Callable[[Any], nnx.Module]:
    """What freezes a model that sees pictures of this transform, and nothing else."""
    return partial(freeze, images=_seen(transform).shape)


def _seen(transform: Transform) -> jax.ShapeDtypeStruct:
    """A picture as a model sees it."""
    return jax.ShapeDtypeStruct((1, transform.crop, transform.crop, 3), np.float32)


def classes_of(model: Backbone, transform: Transform) -> int:
    """How many classes a model tells apart, in pictures of this transform."""
    return int(jax.eval_shape(lambda model, x: model.head(model.features(x)), model, _seen(transform)).shape[-1])


def dtype_of(model: Backbone, transform: Transform) -> str:
    """That of a model's features, in which it computes."""
    return str(jax.eval_shape(lambda model, x: model.features(x), model, _seen(transform)).dtype)


def name_in(name: str, dtype: str) -> str:
    """What results call a model that computes in another dtype than float32: reports compare NAME with NAME_dcls."""
    stem = name.removesuffix("_dcls")
    return name if dtype == "float32" else f"{stem}_{dtype}{name.removeprefix(stem)}"


def chosen(presets: Sequence[str] | Mapping[str, P], known: Mapping[str, P]) -> Mapping[str, P]:
    """Presets by name: those given, or known ones by their names. Raises ValueError for unknown ones, and for none."""
    if not presets:
        raise ValueError(f"presets are none, expected some of {', '.join(known)}")
    if isinstance(presets, Mapping):
        return presets
    return {name: chosen_convention(name, known, "preset") for name in presets}


def mean(values: np.ndarray) -> float:
    """Over records (n,), in float64; NaN of none."""
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each value that is one number of a record."""
    return {name: mean(of) for name, of in values.items() if of.ndim == 1}

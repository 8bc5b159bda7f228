"""A metric as data, and all that its evaluation needs beside it: settings, results, and the run that leads to them.

A metric says what it makes of a sample, what the model makes of that, and what is said of all scores together. Reading,
batches, devices, resuming, what could not be read, summaries and tables are the same for all.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from dcls_jax.cam.masks import chosen_convention
from dcls_jax.eval.data.records import RecordError
from dcls_jax.eval.data.source import Source, class_of
from dcls_jax.eval.results import ResultsFolder, check_writable
from dcls_jax.eval.runner import OnHost, Results, Row, Runner
from dcls_jax.eval.status import Scores, Status, counted
from dcls_jax.freezing import freeze
from dcls_jax.models import Backbone, Transform
from dcls_jax.models.state_dicts import shortened

P = TypeVar("P")  # a preset
S = TypeVar("S")  # a sample, as its source has it
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
    out: str | PathLike[str] | None = None
    skip_bad: bool = False
    name: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.out is not None:
            check_writable(Path(self.out))

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
    step(model, records) -> {variant: Scores}: a pure function of arrays, jitted and cut among devices; see `Runner`.
    held(model) -> what every device holds of it, and `step` is handed: the model with its kernels constructed.
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


def run(metric: Metric[S, Any], model: Backbone, source: Source[S], settings: Settings) -> tuple[Result, ...]:
    """What a model reaches on all samples, on all devices of all hosts: a result for each variant, from the same pass.

    Raises ValueError (no samples, a batch size that the devices cannot share), RecordError (a sample that cannot be
    read, unless they are skipped), OSError (`settings.out` cannot be written), ResultsError (it holds another run's
    results, or damaged ones, or a run is at work there).
    """
    if not len(source) and source.damage:
        raise RecordError("\n  ".join(["there are no records to evaluate", *shortened(source.damage)]))
    runner = runner_of(metric, model, source, settings)
    identity = {"arguments": _arguments(metric, model, settings), "data": source.identity()} | runner.identity()
    with nullcontext() if settings.out is None else ResultsFolder(settings.out, identity) as folder:
        scores = {variant: counted(scores) for variant, scores in runner.run(folder).items()}
        bad = (*_unreadable(metric, source, scores), *source.damage)
        results = tuple(
            Result(
                title=metric.title,
                name=settings.name_of(model),
                labels={**metric.labels, metric.variant: variant},
                values=_summary(summarise, scores[variant]),
                scores=scores[variant].values,
                status=scores[variant].status,
                bad_records=bad,
                seconds=runner.seconds,
                classes=runner.classes,
            )
            for variant, summarise in metric.variants.items()
        )
        if folder is not None:
            summary = {"results": {result.labels[metric.variant]: result.summary() for result in results}}
            folder.finish(summary, places=[source.place(index) for index in range(len(source))])
    return results


def runner_of(metric: Metric[S, Any], model: Backbone, source: Source[S], settings: Settings) -> Runner:
    """What computes the scores of all samples; see `run`."""
    graph, state = nnx.split(metric.held(model))
    return Runner(
        lambda state, records: metric.step(nnx.merge(graph, state), records),
        state,
        reader_of(metric, source, skip_bad=settings.skip_bad),
        metric.blank,
        len(source),
        batch_size=settings.batch_size,
        on_host=metric.on_host,
        progress=settings.progress,
    )


def _arguments(metric: Metric[Any, Any], model: Backbone, settings: Settings) -> dict[str, Any]:
    return {
        "evaluation": metric.name,
        "name": settings.name_of(model),
        **metric.labels,
        f"{metric.variant}s": list(metric.variants),
        "transform": dataclasses.asdict(settings.transform_of(model)),
        "batch_size": settings.batch_size,
        "skip_bad": settings.skip_bad,
        **metric.options,
    }


def reader_of(metric: Metric[S, R], source: Source[S], *, skip_bad: bool) -> Callable[[int], Row | Status]:
    """What `Runner` reads by."""

    def read(index: int) -> Row | Status:
        try:
            sample = source[index]
            record = _prepared(metric, source, index, sample)
        except RecordError:
            if not skip_bad:
                raise
            return Status.UNREADABLE
        return record if isinstance(record, Status) else Row(record, metric.aside(sample), class_of(sample))

    return read


def _prepared(metric: Metric[S, R], source: Source[S], index: int, sample: S) -> R | Status:
    try:
        return metric.prepare(sample)
    except RecordError as error:
        raise RecordError(f"{source.place(index)}: {error}") from error


def _summary(summarise: Summarise, scores: Scores) -> Mapping[str, float]:
    counts = scores.status == Status.COUNTED.code
    return summarise({name: values[counts] for name, values in scores.values.items()})


def _unreadable(metric: Metric[S, Any], source: Source[S], scores: Results) -> list[str]:
    """What is wrong with each record that could not be read, which is found by reading it again."""
    status = next(iter(scores.values())).status
    return [
        _what_is_wrong(metric, source, index) for index in np.flatnonzero(status == Status.UNREADABLE.code).tolist()
    ]


def _what_is_wrong(metric: Metric[S, Any], source: Source[S], index: int) -> str:
    try:
        _prepared(metric, source, index, source[index])
    except RecordError as error:
        return str(error)
    return f"{source.place(index)}: could not be read"


def classes_of(model: Backbone, transform: Transform) -> int:
    """How many classes a model tells apart, in pictures of this transform."""
    images = jax.ShapeDtypeStruct((1, transform.crop, transform.crop, 3), np.float32)
    return int(jax.eval_shape(lambda model, x: model.head(model.features(x)), model, images).shape[-1])


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

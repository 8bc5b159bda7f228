"""Metrics run over data: several in one pass, those of one model in one program."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from flax import nnx

from dcls_jax.eval.data.records import RecordError
from dcls_jax.eval.data.source import Source, class_of
from dcls_jax.eval.hosts import together
from dcls_jax.eval.metric import Metric, Result, Settings, Summarise, dtype_of
from dcls_jax.eval.program import Program, Results, Row, Task
from dcls_jax.eval.results import ResultsFolder
from dcls_jax.eval.runner import Outcome, Read, run_together
from dcls_jax.eval.status import Scores, Status, counted
from dcls_jax.models import Backbone
from dcls_jax.models.state_dicts import shortened

S = TypeVar("S")  # a sample, as its source has it
R = TypeVar("R")  # a record
T = TypeVar("T")


class Job(NamedTuple):
    """One metric of one model, and how it goes."""

    metric: Metric[Any, Any]
    model: Backbone
    settings: Settings


def run(metric: Metric[S, Any], model: Backbone, source: Source[S], settings: Settings) -> tuple[Result, ...]:
    """What a model reaches on all samples, on all devices of all hosts: a result for each variant, from the same pass.

    Raises ValueError (no samples, a batch size that the devices cannot share), RecordError (a sample that cannot be
    read, unless they are skipped), OSError (`settings.out` cannot be written), ResultsError (it holds another run's
    results, or damaged ones, or a run is at work there).
    """
    (results,) = run_all([Job(metric, model, settings)], source)
    return results


def run_all(jobs: Sequence[Job], source: Source[Any]) -> list[tuple[Result, ...]]:
    """`run` of several jobs in one pass over the samples, each read once for all.

    Jobs of one model that prepare samples alike are one program, in which XLA computes once what they share, such as
    the features. The last bits may so depend on which jobs run together. Raises as `run` does, and ValueError for jobs
    with different `batch_size` or `skip_bad`.
    """
    if not len(source) and source.damage:
        raise RecordError("\n  ".join(["there are no records to evaluate", *shortened(source.damage)]))
    settings = jobs[0].settings
    for name in ("batch_size", "skip_bad"):
        if len(values := {getattr(job.settings, name) for job in jobs}) > 1:
            raise ValueError(f"{name} is {' and '.join(map(str, values))} in jobs that run together, expected the same")
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_program_key(job), []).append(job)
    programs = [program_of(group, settings) for group in groups.values()]
    data = source.identity()
    with ExitStack() as stack:
        folders = [
            [_folder(job, program, data, stack) for job in group]
            for group, program in zip(groups.values(), programs, strict=True)
        ]
        read = reader_of([group[0].metric for group in groups.values()], source, skip_bad=settings.skip_bad)
        progress = any(job.settings.progress for job in jobs)
        outcomes = run_together(programs, read, len(source), folders, progress=progress)
        with together():  # what one process writes last is there when the others go on
            results = {
                id(job): _finished(job, outcome, folder, source, program.peak)
                for program, *of_group in zip(programs, groups.values(), outcomes, folders, strict=True)
                for job, outcome, folder in zip(*of_group, strict=True)
            }
    return [results[id(job)] for job in jobs]


def _program_key(job: Job) -> Any:
    """Equal for jobs that can be one program."""
    return id(job.model), same_function(job.metric.held), same_function(job.metric.prepare)


def same_function(function: Callable[..., Any]) -> Any:
    """Equal for functions that do the same, as far as that is seen: partial ones of equal arguments."""
    if isinstance(function, partial):
        key = function.func, function.args, tuple(sorted(function.keywords.items()))
        try:
            hash(key)
        except TypeError:
            return id(function)
        return key
    return function


def program_of(jobs: Sequence[Job], settings: Settings) -> Program:
    """The program of jobs that share a model and how samples are prepared."""
    metric = jobs[0].metric
    graph, state = nnx.split(metric.held(jobs[0].model))

    def task(metric: Metric[Any, Any]) -> Task:
        return Task(lambda state, records: metric.step(nnx.merge(graph, state), records), metric.on_host)

    return Program([task(job.metric) for job in jobs], state, metric.blank, batch_size=settings.batch_size)


def _folder(job: Job, program: Program, data: Any, stack: ExitStack) -> ResultsFolder | None:
    if job.settings.out is None:
        return None
    identity = {"arguments": _arguments(*job), "data": data} | program.identity()
    return stack.enter_context(ResultsFolder(job.settings.out, identity))


def _finished(
    job: Job, outcome: Outcome, folder: ResultsFolder | None, source: Source[Any], peak: int | None
) -> tuple[Result, ...]:
    metric = job.metric
    scores = {variant: counted(scores) for variant, scores in outcome.scores.items()}
    bad = (*_unreadable(metric, source, scores), *source.damage)
    results = tuple(
        Result(
            title=metric.title,
            name=job.settings.name_of(job.model),
            labels={**metric.labels, metric.variant: variant},
            values=_summary(summarise, scores[variant]),
            scores=scores[variant].values,
            status=scores[variant].status,
            bad_records=bad,
            seconds=outcome.seconds,
            classes=outcome.classes,
        )
        for variant, summarise in metric.variants.items()
    )
    if folder is not None:
        summary: dict[str, Any] = {"results": {result.labels[metric.variant]: result.summary() for result in results}}
        if peak is not None:
            summary["peak_bytes"] = peak  # on each device; not known where nothing was left to compute
        folder.finish(summary, places=[source.place(index) for index in range(len(source))])
    return results


def _arguments(metric: Metric[Any, Any], model: Backbone, settings: Settings) -> dict[str, Any]:
    return {
        "evaluation": metric.name,
        "name": settings.name_of(model),
        "dtype": dtype_of(model, settings.transform_of(model)),
        **metric.labels,
        f"{metric.variant}s": list(metric.variants),
        "transform": dataclasses.asdict(settings.transform_of(model)),
        "batch_size": settings.batch_size,
        "skip_bad": settings.skip_bad,
        **metric.options,
    }


def reader_of(metrics: Sequence[Metric[S, Any]], source: Source[S], *, skip_bad: bool) -> Read:
    """What `run_together` reads by: a sample once, prepared for each metric, for those that do it alike once."""
    keys = [same_function(metric.prepare) for metric in metrics]
    by_key = dict(zip(keys, metrics, strict=True))

    def known(get: Callable[[], T]) -> T | Status:
        try:
            return get()
        except RecordError:
            if not skip_bad:
                raise
            return Status.UNREADABLE

    def row(sample: S, metric: Metric[S, Any], record: Any) -> Row | Status:
        return record if isinstance(record, Status) else Row(record, metric.aside(sample), class_of(sample))

    def read(index: int) -> list[Row | Status]:
        sample = known(lambda: source[index])
        if isinstance(sample, Status):
            return [sample] * len(metrics)
        records = {key: known(partial(_prepared, metric, source, index, sample)) for key, metric in by_key.items()}
        return [row(sample, metric, records[key]) for key, metric in zip(keys, metrics, strict=True)]

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

"""Accuracy: how often the label is the class that the model finds most probable, or among the five most probable."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam import programs
from dcls_jax.cam.model import output_of
from dcls_jax.eval.data.labelled import Record, Sample, blank_record, check_classes, record_of
from dcls_jax.eval.data.source import Samples, as_source
from dcls_jax.eval.jobs import run
from dcls_jax.eval.metric import Metric, Result, Settings, classes_of, frozen_for, means
from dcls_jax.eval.status import Scores, Status
from dcls_jax.models import Backbone, Transform
from dcls_jax.models.published import Accuracy


def label_ranks(logits: ArrayLike, labels: ArrayLike) -> Array:
    """How many classes come before each label: of logits (B, classes), larger ones, and equal ones of a lower number.

    labels (B,) -> (B,) int32; 0 where the prediction, `argmax`, is right.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)[:, None]
    own = jnp.take_along_axis(logits, labels, 1)
    before = (logits > own) | ((logits == own) & (jnp.arange(logits.shape[1])[None] < labels))
    return before.sum(1, dtype=jnp.int32)


def top_k(model: Any, batches: Iterable[tuple[ArrayLike, ArrayLike]], *, k: Sequence[int] = (1, 5)) -> dict[int, float]:
    """The share of images, 0 to 1, whose label is among the k classes with the largest logits, for each k.

    model: as for `dcls_jax.cam.explain`, with logits (B, classes). batches: of images (B, H, W, 3), normalised for the
    model, and int labels (B,). Of equal logits that of the lower class comes first.
    Raises ValueError for no images, for labels, logits and k that do not fit, and for logits that are not finite.
    """
    hits, count = np.zeros(len(k), int), 0
    for images, labels in batches:
        logits, labels = np.asarray(programs.run(output_of, model, jnp.asarray(images))), np.asarray(labels)
        _check_batch(logits, labels, k)
        ranks = np.asarray(label_ranks(logits, labels))
        hits += [(ranks < number).sum() for number in k]
        count += len(labels)
    if not count:
        raise ValueError("batches hold no images, expected at least one")
    return dict(zip(k, (hits / count).tolist(), strict=True))


def _check_batch(logits: np.ndarray, labels: np.ndarray, k: Sequence[int]) -> None:
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"labels have shape {labels.shape} and dtype {labels.dtype}, expected ({len(logits)},) of int")
    if wrong := [label for label in labels.tolist() if not 0 <= label < classes]:
        raise ValueError(f"labels hold {wrong[0]}, but the model has classes 0 to {classes - 1}")
    _check_k(k, classes)
    if not np.isfinite(logits).all():
        raise ValueError(f"logits of image {np.flatnonzero(~np.isfinite(logits).all(1))[0]} of a batch are not finite")


def _check_k(k: Sequence[int], classes: int) -> None:
    if not k or not all(1 <= number <= classes for number in k):
        raise ValueError(f"k (={k!r}) must hold numbers from 1 to the model's {classes} classes")


def evaluate(
    model: Backbone,
    samples: Samples[Sample],
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    k: Sequence[int] = (1, 5),
    published: Sequence[Accuracy] = (),
) -> Result:
    """`top_k` of samples on all devices of all hosts, resumable; its values are "top_1", "top_5".

    samples: see `data.labelled.Sample`, such as `data.folder.Folder` has.
    published: figures to show beside, as "top_1_authors".
    Raises as `jobs.run` does, and ValueError for k, and folders, that do not fit the model's classes.
    """
    accuracy = metric(model, settings.transform_of(model), samples, k=k, published=published)
    (result,) = run(accuracy, model, as_source(samples), settings)
    return result


def metric(
    model: Backbone,
    transform: Transform,
    samples: Samples[Sample],
    *,
    k: Sequence[int] = (1, 5),
    published: Sequence[Accuracy] = (),
) -> Metric[Sample, Record]:
    """What `evaluate` measures."""
    classes = classes_of(model, transform)
    _check_k(k, classes)
    check_classes(samples, classes)
    name = f"{transform.resize}/{transform.crop}"
    return Metric(
        name="accuracy",
        title="Accuracy",
        variant="transform",
        variants={name: partial(_summary, published=published)},
        options={"k": list(k)},
        blank=blank_record(transform),
        prepare=partial(record_of, transform=transform, classes=classes),
        step=partial(_scores, name=name, transform=transform, k=k),
        held=frozen_for(transform),
    )


def _scores(model: Any, records: Record, *, name: str, transform: Transform, k: Sequence[int]) -> dict[str, Scores]:
    return {name: _hits(output_of(model, transform.normalised(records.pixels)), records.label, k)}


def _hits(logits: Array, labels: Array, k: Sequence[int]) -> Scores:
    ranks = label_ranks(logits, labels)
    status = jnp.where(jnp.isfinite(logits).all(1), Status.COUNTED.code, Status.NOT_FINITE.code)
    return Scores({f"top_{number}": ranks < number for number in k}, status.astype(jnp.int8))


def _summary(values: Mapping[str, np.ndarray], *, published: Sequence[Accuracy]) -> dict[str, float]:
    shares = means(values)
    return shares | {
        f"{name}_{figure.source}": percent / 100
        for figure in published
        for name, percent in (("top_1", figure.top_1), ("top_5", figure.top_5))
        if percent is not None
    }

"""Sanity checks: a map that is still there when the model has forgotten what it learned says nothing about that.

Layer by layer a model becomes random (`randomise`), or it is trained on shuffled labels, and its maps are compared with
those of the trained model (`similarity`): the less alike, the more a map depends on what was learned. The trained model
itself is in no average. Adebayo et al. 2018, arXiv 1810.03292.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dcls_jax.cam import METHODS, channel_sum, options_of
from dcls_jax.cam.masks import chosen_convention
from dcls_jax.cam.model import output_of
from dcls_jax.eval.data.labelled import Record, Sample, blank_record, check_classes, record_of
from dcls_jax.eval.data.source import Samples, as_source
from dcls_jax.eval.jobs import run
from dcls_jax.eval.metric import Metric, Result, Settings, classes_of, mean
from dcls_jax.eval.randomisation import Layers, Order, check_alike, layers_of, mixture, random_twin, randomise, schedule
from dcls_jax.eval.scoring import at_size
from dcls_jax.eval.similarity import (
    SIMILARITY_PRESETS,
    SimilarityPreset,
    entropy,
    entropy_rise,
    hog,
    similarity,
    ssim,
)
from dcls_jax.eval.status import Scores, Status, first_reason, map_status
from dcls_jax.models import Backbone, Transform

__all__ = [
    "MEAN",
    "MEASURES",
    "SHUFFLED",
    "SIMILARITY_PRESETS",
    "SimilarityPreset",
    "entropy",
    "entropy_rise",
    "evaluate",
    "hog",
    "label_randomisation",
    "randomise",
    "similarity",
    "ssim",
]

MEASURES = "spearman", "spearman_abs", "ssim", "hog", "entropy_rise"
MEAN, SHUFFLED = "mean", "shuffled labels"  # results that are of no layer


class _Pair(nnx.Module):
    """The model and one of its structure, whose layers take the places of its own."""

    def __init__(self, model: Backbone, other: Backbone) -> None:
        self.model = model
        self.other = other


def evaluate(
    model: Backbone,
    samples: Samples[Sample],
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    order: Order = "cascading",
    preset: str = "standard",
    seed: int = 0,
    build: Callable[[nnx.Rngs], Any] | None = None,
) -> tuple[Result, ...]:
    """How alike a model's maps stay while its layers become random: a result for each step of `randomise`, and a mean.

    samples: see `data.labelled.Sample`; the label is explained, unless the preset says otherwise. method, layer: as of
    `dcls_jax.cam.explain`; maps are raw, at the picture's size, and scaled to a largest magnitude of 1. order, build,
    and the seed of random numbers: see `randomise`. preset: of `similarity`, whose means are the values. The step at
    which all is random has the value "entropy_rise" too, eMPRT's. A picture whose map is constant, before or after, is
    left out as such. The result "mean" is that of each picture's average over the steps at which it counts.
    Raises as `jobs.run`, `randomise` and `similarity` do, and ValueError for an unknown method or layer.
    """
    measured = metric(
        model,
        settings.transform_of(model),
        samples,
        method=method,
        layer=layer,
        order=order,
        preset=preset,
        seed=seed,
        build=build,
    )
    return run(measured, model, as_source(samples), settings)


def metric(
    model: Backbone,
    transform: Transform,
    samples: Samples[Sample],
    *,
    method: str,
    layer: str | None = None,
    order: Order = "cascading",
    preset: str = "standard",
    seed: int = 0,
    build: Callable[[nnx.Rngs], Any] | None = None,
) -> Metric[Sample, Record]:
    """What `evaluate` measures."""
    other, layers = random_twin(model, jax.random.key(seed), build)
    steps = dict(zip(layers, schedule(len(layers), order), strict=True))
    labels, options = {"method": method, "order": order, "preset": preset}, {"layer": layer, "seed": seed}
    title = "Similarity to the trained model's maps"
    return _comparison(title, model, other, layers, samples, transform, steps, labels, options)


def label_randomisation(
    model: Backbone,
    shuffled: Backbone,
    samples: Samples[Sample],
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    preset: str = "standard",
) -> Result:
    """How alike a model's maps are to those of the same model trained on shuffled labels.

    shuffled: a model of the same structure, such as `demo.shuffled_model()`. The rest is as for `evaluate`. Raises as
    it does, and ValueError for models of different parameters. Adebayo et al. 2018, arXiv 1810.03292, section 3.
    """
    transform = settings.transform_of(model)
    measured = label_metric(model, shuffled, transform, samples, method=method, layer=layer, preset=preset)
    (result,) = run(measured, model, as_source(samples), settings)
    return result


def label_metric(
    model: Backbone,
    shuffled: Backbone,
    transform: Transform,
    samples: Samples[Sample],
    *,
    method: str,
    layer: str | None = None,
    preset: str = "standard",
) -> Metric[Sample, Record]:
    """What `label_randomisation` measures."""
    check_alike(model, shuffled, "shuffled")
    layers = layers_of(model)
    steps = {SHUFFLED: np.ones(len(layers), bool)}
    labels, options = {"method": method, "preset": preset}, {"layer": layer}
    title = "Similarity to the maps of shuffled labels"
    return _comparison(title, model, shuffled, layers, samples, transform, steps, labels, options)


def _comparison(
    title: str,
    model: Backbone,
    other: Backbone,
    layers: Layers,
    samples: Samples[Sample],
    transform: Transform,
    steps: Mapping[str, np.ndarray],
    labels: Mapping[str, str],
    options: Mapping[str, Any],
) -> Metric[Sample, Record]:
    """How alike maps are at steps, which say what layers are the other model's, and on average over several."""
    method, rule = labels["method"], chosen_convention(labels["preset"], SIMILARITY_PRESETS, "preset")
    if method not in METHODS:
        raise ValueError(f"method (={method!r}) must be one of {', '.join(METHODS)}")
    classes = classes_of(model, transform)
    check_classes(samples, classes)
    maps_of = partial(_maps, transform=transform, method=method, layer=options["layer"], predicted=rule.predicted)
    return Metric(
        name="sanity",
        title=title,
        variant="random",
        variants=dict.fromkeys([*steps, *([MEAN] if len(steps) > 1 else [])], _summary),
        blank=blank_record(transform),
        prepare=partial(record_of, transform=transform, classes=classes),
        step=partial(_scores, layers=layers, steps=steps, maps_of=maps_of, rule=rule),
        labels=labels,
        options=options,
        held=lambda model: _Pair(model, other),
    )


def _summary(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: mean(values[name]) for name in MEASURES if name in values}


def _maps(
    model: Backbone, records: Record, *, transform: Transform, method: str, layer: str | None, predicted: bool
) -> Array:
    """Maps (B, H, W) of the label, or of the class that this model predicts."""
    images = transform.normalised(records.pixels)
    targets = output_of(model, images).argmax(-1) if predicted else records.label
    # Every image gets the same noise; of guided gradients, which have a map for each colour, the sum is taken.
    options = {"key": jax.random.key(0), "reduce": channel_sum}
    known = {name: option for name, option in options.items() if name in options_of(method)}
    return at_size(METHODS[method](model, images, targets, layer=layer, **known), images.shape[1:3])


def _scores(
    pair: _Pair,
    records: Record,
    *,
    layers: Layers,
    steps: Mapping[str, np.ndarray],
    maps_of: Callable[[Any, Record], Array],
    rule: SimilarityPreset,
) -> dict[str, Scores]:
    trained = maps_of(pair.model, records)

    def at_step(chosen: Array) -> tuple[dict[str, Array], Array, Array]:
        maps = maps_of(mixture(pair.model, pair.other, layers, chosen), records)
        status = first_reason(map_status(trained), map_status(maps))
        values = jax.vmap(partial(similarity, preset=rule))(_scaled(trained), _scaled(maps))
        nothing = jnp.zeros(len(maps))
        rises = jax.lax.cond(chosen.all(), lambda: jax.vmap(entropy_rise)(trained, maps), lambda: nothing)
        return values, rises, status

    values, rises, status = jax.lax.map(at_step, jnp.asarray(np.stack([*steps.values()])))
    scores = {}
    for i, (name, chosen) in enumerate(steps.items()):
        rise = {"entropy_rise": rises[i]} if chosen.all() else {}
        scores[name] = Scores({measure: of[i] for measure, of in values.items()} | rise, status[i])
    return scores | ({MEAN: _average(values, status)} if len(steps) > 1 else {})


def _scaled(maps: Array) -> Array:
    largest = jnp.abs(maps).max((1, 2), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1)


def _average(values: Mapping[str, Array], status: Array) -> Scores:
    """Of values (steps, B), over the steps at which each record counts; of one that never does, why at the first."""
    counts = status == Status.COUNTED.code
    number = counts.sum(0)
    means = {
        name: jnp.where(counts, of, 0).sum(0) / jnp.where(number > 0, number, 1).astype(of.dtype)
        for name, of in values.items()
    }
    return Scores(means, jnp.where(number > 0, Status.COUNTED.code, status[0]).astype(jnp.int8))

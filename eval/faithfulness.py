"""Faithfulness: what a model's confidence does when the pixels that a map calls important go, come or change.

Images are (B, H, W, C), normalised for the model. Maps are (B, h, w), larger is more important, of any size: they are
resized linearly to the image, with half-pixel centres and without antialiasing. Targets are what `dcls_jax.cam` takes;
None is the class with the largest logit on the clean image. Labels are scored by their softmax probability, functions
of the output on their own scale. Everything is one program per shape, and versions of images pass through the model
`chunk` at a time, which changes no result but rounding.

Maps that are not finite are refused; inside a `jax.jit`, where values cannot be seen, they score NaN. `map_status`
tells them, and constant ones, from those that count, and `tied` how many pixels are ordered by the preset's rule alone.
`evaluate` runs presets over pictures.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dcls_jax.cam import options_of
from dcls_jax.cam.model import output_of
from dcls_jax.eval.confidence import MASKING_PRESETS, MaskingPreset, adcc, confidence_change
from dcls_jax.eval.data.source import Samples, as_source
from dcls_jax.eval.flipping import (
    FLIPPING_PRESETS,
    SUBSTRATES,
    FlippingPreset,
    auc,
    deletion,
    deletion_and_insertion,
    fractions,
    insertion,
    relevance_gain,
)
from dcls_jax.eval.frames import Views, picture_of, views_of
from dcls_jax.eval.jobs import run
from dcls_jax.eval.metric import Metric, Result, Settings, chosen, frozen_for, means
from dcls_jax.eval.road import ROAD_PRESETS, RoadPreset, impute, road
from dcls_jax.eval.robustness import infidelity, max_sensitivity
from dcls_jax.eval.scoring import tied
from dcls_jax.eval.status import Scores, Status, map_status
from dcls_jax.eval.study import presented, raw_maps
from dcls_jax.models import Backbone, Transform
from dcls_jax.models.transform import Picture

__all__ = [
    "FLIPPING_PRESETS",
    "MASKING_PRESETS",
    "PRESETS",
    "ROAD_PRESETS",
    "SUBSTRATES",
    "FlippingPreset",
    "MaskingPreset",
    "Preset",
    "RoadPreset",
    "Status",
    "adcc",
    "auc",
    "check_choice",
    "confidence_change",
    "deletion",
    "deletion_and_insertion",
    "evaluate",
    "fractions",
    "impute",
    "infidelity",
    "insertion",
    "map_status",
    "max_sensitivity",
    "relevance_gain",
    "road",
    "tied",
]

Sample = Picture | tuple[Any, ...]  # a picture, or one and whatever follows


class Seen(NamedTuple):
    """What a measure is told of a batch: images, the predicted classes (B,), maps as presented, and how they are made.

    numbers: (B,) uint32, by which each image has its own random numbers. std: the transform's.
    """

    model: Any
    images: Array
    targets: Array
    maps: Array
    explain: Callable[..., Array]
    numbers: Array
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, ...]:
        return self.images.shape[1:3]

    @property
    def tied(self) -> Array:
        """The share of pixels, at the image's size, whose order only the preset's rule decides."""
        return tied(self.maps, size=self.size)


Measure = Callable[[Seen], dict[str, Array]]


def _flipped(seen: Seen, rule: FlippingPreset) -> dict[str, Array]:
    along = fractions(seen.size, preset=rule) if rule.by_fraction else None
    both = deletion_and_insertion(seen.model, seen.images, seen.maps, seen.targets, preset=rule)
    curves = dict(zip(("deletion", "insertion"), both, strict=True))
    areas = {kind: auc(curve, fractions=along) for kind, curve in curves.items()}
    return areas | {"tied": seen.tied} | {f"{kind}_curve": curve for kind, curve in curves.items()}


def _gain(seen: Seen, rule: FlippingPreset) -> dict[str, Array]:
    gain = relevance_gain(seen.model, seen.images, seen.maps, seen.targets, preset=rule)
    return {"relevance_gain": gain, "tied": seen.tied}


def _masked(seen: Seen, rule: MaskingPreset) -> dict[str, Array]:
    changes = confidence_change(seen.model, seen.images, seen.maps, seen.targets, preset=rule)
    return changes | {"complexity": rule.masks(seen.maps, seen.size).mean((1, 2))}


def _imputed(seen: Seen, rule: RoadPreset) -> dict[str, Array]:
    about = seen.model, seen.images, seen.maps, seen.targets
    curves = road(*about, preset=rule, std=seen.std, key=jax.random.key(0), numbers=seen.numbers)
    areas = {kind: curve.mean(1) for kind, curve in curves.items()}
    return areas | {"tied": seen.tied} | {f"{kind}_curve": curve for kind, curve in curves.items()}


def _harmonic(seen: Seen) -> dict[str, Array]:
    return adcc(seen.model, seen.images, seen.targets, method=seen.explain)


def _moved(seen: Seen) -> dict[str, Array]:
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(seen.numbers)
    return {"max_sensitivity": max_sensitivity(seen.model, seen.images, seen.explain, seen.targets, key=keys)}


@dataclass(frozen=True)
class Preset:
    """What a run measures of each picture.

    measure: gives values by name. frame: what the model sees, a name in `frames.FRAMES`. excludes: maps that the
    original leaves out; others count, constant ones with "constant" 1.
    """

    measure: Measure
    frame: str = "own"
    excludes: tuple[Status, ...] = (Status.NOT_FINITE,)


_RISE = FLIPPING_PRESETS["rise"]
PRESETS = {
    **{
        name: Preset(partial(_flipped, rule=rule), rule.frame, rule.excludes) for name, rule in FLIPPING_PRESETS.items()
    },
    **{f"{name}_change": Preset(partial(_masked, rule=rule)) for name, rule in MASKING_PRESETS.items()},
    "relevance_gain": Preset(partial(_gain, rule=_RISE), _RISE.frame),
    "road": Preset(partial(_imputed, rule=ROAD_PRESETS["official"])),
    "pytorch_grad_cam": Preset(partial(_imputed, rule=ROAD_PRESETS["pytorch_grad_cam"])),
    "adcc": Preset(_harmonic, "centre"),
    "max_sensitivity": Preset(_moved),
}


class Record(NamedTuple):
    """The picture by each transform (views, crop, crop, 3) uint8, and the number of its random key.

    Of a batch, (B, ...).
    """

    pixels: Any
    number: Any


def evaluate(
    model: Backbone,
    samples: Samples[Sample],
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    method: str = "grad_cam",
    presets: Sequence[str] | Mapping[str, Preset] = ("rise",),
) -> tuple[Result, ...]:
    """Faithfulness of a CAM method's maps of the predicted classes, resumable, on all devices of all hosts.

    samples: a picture each, of Pillow, an array (H, W, 3) uint8 or the path of a file, or a tuple that begins with one,
    such as those of `data.folder.Folder`. method: any of `dcls_jax.cam.METHODS`, presented as for ClickMe.
    presets: names in PRESETS, or others by name; a result each, from the same pass. Each picture's random numbers are
    its own, by its pixels. Raises as `jobs.run` does, and ValueError for an unknown method or preset.
    """
    faithfulness = metric(settings.transform_of(model), method=method, presets=presets)
    return run(faithfulness, model, as_source(samples), settings)


def metric(
    transform: Transform, *, method: str, presets: Sequence[str] | Mapping[str, Preset]
) -> Metric[Sample, Record]:
    """What `evaluate` measures."""
    measured = check_choice(method, presets)
    views = views_of(transform, {name: preset.frame for name, preset in measured.items()})
    return Metric(
        name="faithfulness",
        title="Faithfulness",
        variant="preset",
        variants=dict.fromkeys(measured, _summary),
        labels={"method": method},
        blank=Record(views.blank, np.zeros((), np.uint32)),
        prepare=partial(_record, views=views),
        step=partial(_scores, method=method, presets=measured, views=views),
        held=frozen_for(transform),
    )


def check_choice(method: str, presets: Sequence[str] | Mapping[str, Preset]) -> Mapping[str, Preset]:
    """The presets by name. Raises ValueError for a method or a preset that there is not, naming those there are."""
    options_of(method)
    return chosen(presets, PRESETS)


def _record(sample: Sample, *, views: Views) -> Record:
    picture = picture_of(sample[0] if isinstance(sample, tuple) else sample)
    return Record(views.pixels(picture), np.asarray(zlib.crc32(picture.tobytes()), np.uint32))


def _scores(
    model: Any, records: Record, *, method: str, presets: Mapping[str, Preset], views: Views
) -> dict[str, Scores]:
    def explain(model: Any, images: Array, targets: Any, *, layer: str | None = None) -> Array:
        return presented(raw_maps(model, images, targets, method=method), method=method)

    def by_transform(images: Array, transform: Transform) -> Seen:
        targets = output_of(model, images).argmax(-1)
        maps = explain(model, images, targets)
        return Seen(model, images, targets, maps, explain, records.number, transform.std)

    batches = [*map(by_transform, views.images(records.pixels), views.transforms)]
    return {name: _of_preset(batches[views.of[name]], preset) for name, preset in presets.items()}


def _summary(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    shares = means(values)
    aside = {name: shares.pop(name) for name in ("complexity", "tied", "constant") if name in shares}
    return shares | aside  # what explains the scores stands behind them


def _of_preset(seen: Seen, preset: Preset) -> Scores:
    status = map_status(seen.maps)
    excluded = jnp.isin(status, jnp.array([it.code for it in preset.excludes], status.dtype))
    values = preset.measure(seen) | {"constant": (status == Status.CONSTANT.code).astype(jnp.float32)}
    return Scores(values, jnp.where(excluded, status, Status.COUNTED.code).astype(jnp.int8))

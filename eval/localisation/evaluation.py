"""Localisation over a data set: a map for each class of each picture, held against where that class is."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dcls_jax.cam import options_of
from dcls_jax.cam.model import output_of
from dcls_jax.eval.boxes import scaled_boxes
from dcls_jax.eval.data.records import RecordError
from dcls_jax.eval.data.regions import Region, cropped
from dcls_jax.eval.data.source import Located, Samples, Source, as_source, check_label
from dcls_jax.eval.frames import Views, picture_of, views_of
from dcls_jax.eval.jobs import run
from dcls_jax.eval.localisation.protocols import (
    INSIDE_PRESETS,
    MASK_PRESETS,
    POINTING_PRESETS,
    InsidePreset,
    MaskPreset,
    PointingPreset,
    class_means,
    inside,
    on_mask,
    pointing,
)
from dcls_jax.eval.localisation.wsol import BOX_PRESETS, BoxPreset, best_accuracy, box_scores
from dcls_jax.eval.metric import Metric, Result, Settings, chosen, classes_of, frozen_for, mean
from dcls_jax.eval.program import OnHost
from dcls_jax.eval.status import Scores
from dcls_jax.eval.study import presented, raw_maps
from dcls_jax.models import Backbone, Transform
from dcls_jax.models.transform import Picture

Preset = PointingPreset | InsidePreset | MaskPreset | BoxPreset
PRESETS: Mapping[str, Preset] = {**POINTING_PRESETS, **INSIDE_PRESETS, **MASK_PRESETS, **BOX_PRESETS}


class Annotated(Protocol):
    """A picture, of Pillow, an array (H, W, 3) uint8 or a path, and a region of that size for each of its classes."""

    @property
    def image(self) -> Picture: ...

    @property
    def regions(self) -> Mapping[int, Region]: ...


class Sample(NamedTuple):
    """A picture with one of its classes."""

    image: Picture
    label: int
    region: Region


class ByClass:
    """Pictures as a source of `Sample`: each class of each picture, by number. One without any gives none."""

    def __init__(self, pictures: Source[Annotated]) -> None:
        self._pictures = pictures
        self.damage = pictures.damage
        with ThreadPoolExecutor() as threads:
            counts = list(threads.map(partial(_count, pictures), range(len(pictures))))
        self._numbers = [(picture, number) for picture, count in enumerate(counts) for number in range(count)]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        picture, number = self._numbers[index]
        sample = self._pictures[picture]
        regions = sample.regions
        label = sorted(regions)[number]
        return Sample(sample.image, label, regions[label])

    def place(self, index: int) -> str:
        """Where a picture is, and which of its regions is meant, in the order of their classes."""
        picture, number = self._numbers[index]
        return f"{self._pictures.place(picture)}, region {number}"

    def identity(self) -> dict[str, Any]:
        """What tells these data from others, as JSON values."""
        return {"pictures": self._pictures.identity(), "classes_of_pictures": len(self)}


def _count(pictures: Source[Annotated], index: int) -> int:
    if isinstance(pictures, Located):
        return pictures.region_count(index)
    try:
        return len(pictures[index].regions)
    except RecordError:
        return 1  # so that it is met


class Record(NamedTuple):
    """The picture by each transform (views, crop, crop, 3) uint8, and the label; of a batch, (B, ...)."""

    pixels: Any
    label: Any


class Output(NamedTuple):
    """What the model makes of a record: a map by each transform (views, h, w), and whether it is right (views,)."""

    maps: Any
    right: Any


def evaluate(
    model: Backbone,
    samples: Samples[Annotated],
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    method: str = "grad_cam",
    presets: Sequence[str] | Mapping[str, Preset] = ("boxes",),
) -> tuple[Result, ...]:
    """How well a CAM method's maps show where objects are, resumable, on all devices of all hosts.

    samples: pictures with regions, such as the sources of `eval/data/` and `Picture`; a map is made of each class of
    each picture. method: any of `dcls_jax.cam.METHODS`, presented as for ClickMe.
    presets: names in PRESETS, or others by name; a result each, from the same pass. Raises as `jobs.run` does, and
    ValueError for an unknown method or preset and a model that has other classes than a preset's data.
    """
    localisation = metric(model, settings.transform_of(model), method=method, presets=presets)
    return run(localisation, model, ByClass(as_source(samples)), settings)


def metric(
    model: Backbone, transform: Transform, *, method: str, presets: Sequence[str] | Mapping[str, Preset]
) -> Metric[Sample, Record]:
    """What `evaluate` measures, of samples as `ByClass` has them."""
    protocols = check_choice(method, presets)
    classes = classes_of(model, transform)
    _check_classes(protocols, classes)
    views = views_of(
        transform, {name: "own" if _sees_a_part(preset) else "whole" for name, preset in protocols.items()}
    )
    return Metric(
        name="localisation",
        title="Localisation",
        variant="preset",
        variants={name: partial(_summary, preset=preset) for name, preset in protocols.items()},
        labels={"method": method},
        blank=Record(views.blank, np.zeros((), np.int32)),
        prepare=partial(_record, views=views, classes=classes),
        step=partial(_output, method=method, views=views),
        on_host=OnHost(partial(_scores, presets=protocols, views=views), _blank(protocols, views)),
        held=frozen_for(transform),
        aside=lambda sample: sample,
    )


def check_choice(method: str, presets: Sequence[str] | Mapping[str, Preset]) -> Mapping[str, Preset]:
    """The presets by name. Raises ValueError for a method or a preset that there is not, naming those there are."""
    options_of(method)
    return chosen(presets, PRESETS)


def _sees_a_part(preset: Preset) -> bool:
    return isinstance(preset, InsidePreset) and preset.sees == "crop"


def _check_classes(presets: Mapping[str, Preset], classes: int) -> None:
    for name, preset in presets.items():
        if isinstance(preset, PointingPreset | MaskPreset) and preset.classes != classes:
            raise ValueError(
                f"model has {classes} classes, but preset {name!r} is of {preset.classes}: it must be trained on those"
            )


def _record(sample: Sample, *, views: Views, classes: int) -> Record:
    check_label(sample.label, classes)
    return Record(views.pixels(picture_of(sample.image)), np.asarray(sample.label, np.int32))


def _output(model: Any, records: Record, *, method: str, views: Views) -> Output:
    maps, right = [], []
    for images in views.images(records.pixels):
        maps.append(presented(raw_maps(model, images, records.label, method=method), method=method))
        right.append(output_of(model, images).argmax(-1) == records.label)
    return Output(jnp.stack(maps, 1), jnp.stack(right, 1))


def _scores(output: Output, sample: Sample, *, presets: Mapping[str, Preset], views: Views) -> dict[str, Scores]:
    """Those of one picture's class."""
    about = {"label": np.int32(sample.label)}
    scores = {}
    for name, preset in presets.items():
        values, status = _score(output.maps[views.of[name]], sample.region, preset, views.transform(name))
        if isinstance(preset, BoxPreset):
            values = {**values, "right": output.right[views.of[name]]}
        scores[name] = Scores({**values, **about}, np.int8(status))
    return scores


def _score(map: np.ndarray, region: Region, preset: Preset, transform: Transform) -> Scores:
    match preset:
        case PointingPreset():
            return pointing(map, region, preset)
        case InsidePreset():
            return inside(map, cropped(region, transform) if _sees_a_part(preset) else region, preset)
        case MaskPreset():
            return on_mask(map, region, preset)
        case BoxPreset():  # the original's boxes are those of the picture that the model sees
            size = transform.crop, transform.crop
            return box_scores(map, scaled_boxes(region.boxes, region.mask.shape, size), preset, size=size)


def _blank(presets: Mapping[str, Preset], views: Views) -> dict[str, Scores]:
    """Scores of anything, for their names and shapes."""
    output = Output(np.ones((len(views.transforms), 1, 1)), np.ones(len(views.transforms), bool))
    sample = Sample(np.zeros((1, 1, 3), np.uint8), 0, Region(np.ones((1, 1), bool)))
    return jax.tree.map(np.zeros_like, _scores(output, sample, presets=presets, views=views))


def _summary(values: Mapping[str, np.ndarray], *, preset: Preset) -> dict[str, float]:
    match preset:
        case PointingPreset():
            labels = values["label"].astype(int)
            of_classes = class_means(values["hit"], labels, preset.classes)
            by_class = {"hit_all_classes": of_classes.all, "hit_seen_classes": of_classes.seen}
            return {"hit": mean(values["hit"]), **by_class, "tied": mean(values["tied"])}
        case InsidePreset():
            return {name: mean(values[name]) for name in ("energy", "top_n", "tied")}
        case MaskPreset():
            fixed = [f"iou_{threshold:g}" for threshold in preset.fixed]
            best = max(map(mean, values["iou"].T))  # one threshold for all
            return {"iou": best} | {name: mean(values[name]) for name in (*fixed, "best_iou", "energy", "hit", "tied")}
        case BoxPreset():
            overlaps, right = values["overlap"], values["right"].astype(bool)
            found = {"box_accuracy": best_accuracy(overlaps, preset), "top_1": best_accuracy(overlaps, preset, right)}
            return found | {"dead": mean(values["dead"])}

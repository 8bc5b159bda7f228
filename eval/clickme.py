"""Human alignment on ClickMe: Spearman's correlation of a model's maps with the heatmaps of people's clicks.

Protocol of Fel et al. 2022 (serre-lab/Harmonization), with the model side of the DCLS study (arXiv 2408.03164): the
label is explained, ranks are averaged over ties, the score is the mean over images divided by the human ceiling.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from PIL import Image

from dcls_jax.cam import options_of
from dcls_jax.eval import metric as metrics
from dcls_jax.eval.data.clickme import SIZE, ClickMe, Stored, human_maps, picture
from dcls_jax.eval.data.clickme import Sample as Sample
from dcls_jax.eval.data.clickme import load as load
from dcls_jax.eval.data.records import Paths
from dcls_jax.eval.data.source import check_label
from dcls_jax.eval.jobs import run
from dcls_jax.eval.metric import Metric, Settings, classes_of, frozen_for, mean
from dcls_jax.eval.rank import spearman
from dcls_jax.eval.status import Scores, Status, first_reason, map_status
from dcls_jax.eval.study import presented, raw_maps
from dcls_jax.models import Backbone, Transform

HUMAN_CEILING = 0.65753  # mean correlation of one half of the people with the other
Protocol = Literal["published", "aligned"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


class Record(NamedTuple):
    """What the model sees of an image (crop, crop, 3) uint8, heatmaps (protocols, 224, 224) and the label.

    Of a batch, (B, ...).
    """

    pixels: Any
    heatmaps: Any
    label: Any


class Result(metrics.Result):
    """Scores of one model by one protocol.

    Images whose map, or human heatmap, is constant or not finite are skipped; they have no rank correlation.
    """

    @property
    def alignment(self) -> float:
        """The published score: `mean_spearman` as a share of the human ceiling, 0.65753."""
        return self.values["alignment"]

    @property
    def mean_spearman(self) -> float:
        """Mean over the images that count; NaN if none does."""
        return self.values["mean_spearman"]

    @property
    def per_image(self) -> np.ndarray:
        """Correlations, float32 in data order, NaN where an image was skipped or could not be read."""
        return self.scores["spearman"]

    @property
    def method(self) -> str:
        return self.labels["method"]

    @property
    def protocol(self) -> str:
        return self.labels["protocol"]

    @property
    def images(self) -> int:
        """How many images count."""
        return self.counted

    @property
    def skipped(self) -> int:
        """How many do not, though they could be read."""
        return sum(number for status, number in self.left_out.items() if status is not Status.UNREADABLE)


def evaluate(
    model: Backbone,
    paths: Paths,
    *,
    method: str = "grad_cam",
    protocol: Protocol = "aligned",
    transform: Transform | None = None,
    batch_size: int = 32,
    out: str | PathLike[str] | None = None,
    skip_bad: bool = False,
    name: str | None = None,
    progress: bool = True,
) -> Result:
    """Alignment of a model's maps with people's, on all devices of all hosts.

    method: any of `dcls_jax.cam.METHODS` with its own options. Maps of the study's, "grad_cam" and
        "threshold_grad_cam", are presented as the study does; of others the raw map through ReLU and min-max. Random
        numbers are the same for every image.
    protocol: the model sees `transform`'s resize and central crop of the 224 x 224 image. "published" compares its map
        with the whole heatmap all the same, as the study did; "aligned" compares it with the heatmap's part that the
        model saw, resized and cropped (bilinear) like the image. They differ only where the transform crops.
    transform, batch_size, out, skip_bad, name, progress: see `Settings`.

    Raises ValueError (unknown method or protocol, batch size that the devices cannot share), FileNotFoundError,
    RecordError (naming file and record), OSError (`out` cannot be written), ResultsError (it holds another run's
    results, or damaged ones, or a run is at work there).
    """
    settings = Settings(transform, batch_size, out, skip_bad, name, progress)
    (result,) = evaluate_protocols(model, paths, (protocol,), method=method, settings=settings)
    return result


def evaluate_protocols(
    model: Backbone,
    paths: Paths,
    protocols: Sequence[Protocol] = PROTOCOLS,
    *,
    method: str = "grad_cam",
    settings: Settings = Settings(),  # noqa: B008  (frozen)
) -> tuple[Result, ...]:
    """`evaluate` by several protocols for the cost of one: a result each, from the same maps, kept in one folder."""
    check_choice(method, protocols)
    alignment = metric(model, protocols, method=method, transform=settings.transform_of(model))
    results = run(alignment, model, ClickMe(paths, skip_bad=settings.skip_bad), settings)
    return tuple(Result(**vars(result)) for result in results)


def check_choice(method: str, protocols: Sequence[str] = PROTOCOLS) -> None:
    """Raise ValueError for a method or a protocol that there is not, naming those there are."""
    options_of(method)
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol (={protocol!r}) must be 'aligned' or 'published'")


def metric(
    model: Backbone, protocols: Sequence[Protocol], *, method: str, transform: Transform
) -> Metric[Stored, Record]:
    """What `evaluate_protocols` measures."""
    return Metric(
        name="clickme",
        title="ClickMe human alignment",
        variant="protocol",
        variants=dict.fromkeys(protocols, _summary),
        labels={"method": method},
        blank=_blank(transform, protocols),
        prepare=_preparation(transform, protocols, classes_of(model, transform)),
        step=partial(_scores, transform=transform, method=method, protocols=tuple(protocols)),
        held=frozen_for(transform),
    )


def _blank(transform: Transform, protocols: Sequence[Protocol]) -> Record:
    pixels = np.zeros((transform.crop, transform.crop, 3), np.uint8)
    return Record(pixels, np.zeros((len(protocols), SIZE, SIZE), np.float32), np.zeros((), np.int32))


def _preparation(transform: Transform, protocols: Sequence[Protocol], classes: int) -> Callable[[Stored], Record]:
    fields = tuple(transform if protocol == "aligned" else None for protocol in protocols)
    return partial(_record, transform=transform, fields=fields, classes=classes)


def _record(stored: Stored, *, transform: Transform, fields: tuple[Transform | None, ...], classes: int) -> Record:
    image, heatmap, label = stored
    check_label(label, classes)
    seen = transform.pixels(Image.fromarray(picture(image, np.uint8)))  # truncated, as the study did
    return Record(seen, human_maps(heatmap, fields), np.asarray(label, np.int32))


def _scores(
    model: Backbone, records: Record, *, transform: Transform, method: str, protocols: tuple[Protocol, ...]
) -> dict[str, Scores]:
    raw = raw_maps(model, transform.normalised(records.pixels), records.label, method=method)
    maps = presented(raw, method=method, size=SIZE)
    by_protocol = jax.vmap(jax.vmap(spearman, in_axes=(None, 0)))(maps, records.heatmaps)
    status = first_reason(map_status(raw), map_status(maps))
    return {
        protocol: Scores(
            {"spearman": by_protocol[:, i]},
            first_reason(status, map_status(records.heatmaps[:, i], Status.CONSTANT_HUMAN)),
        )
        for i, protocol in enumerate(protocols)
    }


def _summary(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    spearman = mean(values["spearman"])
    return {"alignment": spearman / HUMAN_CEILING, "mean_spearman": spearman}

"""Human alignment on ClickMe: Spearman's correlation of a model's maps with the heatmaps of people's clicks.

Protocol of Fel et al. 2022 (serre-lab/Harmonization), with the model side of the DCLS study (arXiv 2408.03164): the
label is explained, ranks are averaged over ties, the score is the mean over images divided by the human ceiling.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import grain
import jax
import numpy as np
from flax import nnx
from jax import Array
from PIL import Image

from dcls_jax.eval.data.clickme import SIZE, decode, human_maps, picture
from dcls_jax.eval.data.records import Paths, RecordError, Records
from dcls_jax.eval.rank import spearman
from dcls_jax.eval.results import ResultsFolder, check_writable
from dcls_jax.eval.runner import Runner
from dcls_jax.eval.study import study_maps
from dcls_jax.freezing import freeze
from dcls_jax.models import Backbone, Transform

HUMAN_CEILING = 0.65753  # mean correlation of one half of the people with the other
Protocol = Literal["published", "aligned"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


class Sample(NamedTuple):
    """One picture with what people clicked on: image (224, 224, 3), 0 to 255, and heatmap (224, 224), both float32.

    Of a batch that grain makes, each is an array with a leading batch axis.
    """

    image: np.ndarray
    heatmap: np.ndarray
    label: int
    file: str
    record: int


@dataclass(frozen=True)
class Result:
    """Scores of one model: `per_image` (float32, in data order) is NaN where an image was skipped or could not be read.

    skipped: images whose map, or human heatmap, is constant or not finite; they have no rank correlation.
    bad_records: one line for each record that could not be read, and for each file that was cut short.
    """

    name: str
    method: str
    protocol: str
    per_image: np.ndarray
    skipped: int
    bad_records: tuple[str, ...]
    seconds: float

    @property
    def images(self) -> int:
        """How many images count."""
        return int(np.isfinite(self.per_image).sum())

    @property
    def mean_spearman(self) -> float:
        """Mean over the images that count; NaN if none does."""
        return float(np.nanmean(self.per_image, dtype=np.float64)) if self.images else math.nan

    @property
    def alignment(self) -> float:
        """The published score: `mean_spearman` as a share of the human ceiling, 0.65753."""
        return self.mean_spearman / HUMAN_CEILING


def load(paths: Paths, *, skip_bad: bool = False) -> grain.MapDataset[Sample]:
    """ClickMe records as the original loader presents them: a grain dataset of `Sample`, in data order.

    paths: a record file, a glob, a folder of *.tfrecords, or a list of these. skip_bad: leave out what cannot be read.
    Raises FileNotFoundError, and RecordError naming file and record (at once, or when the record is reached).
    """
    records = Records(paths, skip_bad=skip_bad)

    def read(index: int) -> Sample | None:
        try:
            image, heatmap, label = decode(records, index)
        except RecordError:
            if skip_bad:
                return None  # grain leaves it out
            raise
        path, number = records.place(index)
        return Sample(picture(image, np.float32), human_maps(heatmap, (None,))[0], label, str(path), number)

    return grain.MapDataset.source(range(len(records))).map(read)


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

    method: "grad_cam" or "threshold_grad_cam", as the study computes them.
    protocol: the model sees `transform`'s resize and central crop of the 224 x 224 image. "published" compares its map
        with the whole heatmap all the same, as the study did; "aligned" compares it with the heatmap's part that the
        model saw, resized and cropped (bilinear) like the image. They differ only where the transform crops.
    transform: the model's own unless given.
    batch_size: over all devices of a host together; part of what makes a run repeatable to the bit.
    out: a folder for the results as they come; the same call goes on where a killed one stopped. Needed on many hosts.
    skip_bad: count records that cannot be read and go on, instead of RecordError.
    name: what reports call the model; its class unless given.

    Raises ValueError (unknown method or protocol, batch size that the devices cannot share), FileNotFoundError,
    RecordError (naming file and record), OSError (`out` cannot be written), ResultsError (it holds another run's
    results, or damaged ones, or a run is at work there).
    """
    (result,) = evaluate_protocols(
        model,
        paths,
        (protocol,),
        method=method,
        transform=transform,
        batch_size=batch_size,
        out=out,
        skip_bad=skip_bad,
        name=name,
        progress=progress,
    )
    return result


def evaluate_protocols(
    model: Backbone,
    paths: Paths,
    protocols: Sequence[Protocol] = PROTOCOLS,
    *,
    method: str = "grad_cam",
    transform: Transform | None = None,
    batch_size: int = 32,
    out: str | PathLike[str] | None = None,
    skip_bad: bool = False,
    name: str | None = None,
    progress: bool = True,
) -> tuple[Result, ...]:
    """`evaluate` by several protocols for the cost of one: a result each, from the same maps, kept in one folder."""
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol (={protocol!r}) must be 'aligned' or 'published'")
    if out is not None:
        check_writable(Path(out))
    transform = model.transform if transform is None else transform
    name = type(model).__name__ if name is None else name
    records = Records(paths, skip_bad=skip_bad)
    model = freeze(model)
    arguments = {
        "evaluation": "clickme",
        "name": name,
        "method": method,
        "protocols": list(protocols),
        "transform": dataclasses.asdict(transform),
        "batch_size": batch_size,
        "skip_bad": skip_bad,
    }
    classes = _classes(model, transform)
    runner = Runner(
        _scores(model, method),
        nnx.state(model),
        _reader(records, transform, protocols, skip_bad, classes),
        _nothing(transform, protocols),
        len(records),
        batch_size=batch_size,
        progress=progress,
    )
    data = [{"file": s.name, "bytes": s.size, "records": len(s.offsets)} for s in records.shards]
    identity = {"arguments": arguments, "data": data} | runner.identity()
    with nullcontext() if out is None else ResultsFolder(out, identity) as folder:
        scores = runner.run(folder)
        bad = scores["absent"]
        unread = [_what_is_wrong(records, index, classes) for index in np.flatnonzero(bad).tolist()]
        results = tuple(
            Result(
                name=name,
                method=method,
                protocol=protocol,
                per_image=np.where(bad, np.float32(np.nan), per_image),
                skipped=int((~np.isfinite(per_image) & ~bad).sum()),
                bad_records=(*unread, *records.damage),
                seconds=runner.seconds,
            )
            for protocol, per_image in zip(protocols, scores["spearman"].T, strict=True)
        )
        if folder is not None:
            folder.finish({"results": {result.protocol: _summary(result) for result in results}})
    return results


def _scores(model: Backbone, method: str) -> Callable[[nnx.State, dict[str, Array]], dict[str, Array]]:
    graph = nnx.graphdef(model)

    def scores(state: nnx.State, batch: dict[str, Array]) -> dict[str, Array]:
        maps = study_maps(nnx.merge(graph, state), batch["image"], batch["label"], method=method, size=SIZE)
        by_protocol = jax.vmap(spearman, in_axes=(None, 0))
        return {"spearman": jax.vmap(by_protocol)(maps, batch["heatmaps"])}

    return scores


def _classes(model: Backbone, transform: Transform) -> int:
    """How many classes the model tells apart."""
    images = jax.ShapeDtypeStruct((1, transform.crop, transform.crop, 3), np.float32)
    return jax.eval_shape(lambda model, x: model.head(model.features(x)), model, images).shape[-1]


def _nothing(transform: Transform, protocols: Sequence[Protocol]) -> dict[str, np.ndarray]:
    """What `_reader` reads, of zeros."""
    return {
        "image": np.zeros((transform.crop, transform.crop, 3), np.float32),
        "heatmaps": np.zeros((len(protocols), SIZE, SIZE), np.float32),
        "label": np.zeros((), np.int32),
    }


def _reader(
    records: Records, transform: Transform, protocols: Sequence[Protocol], skip_bad: bool, classes: int | None = None
) -> Callable[[int], dict[str, np.ndarray] | None]:
    fields = tuple(transform if protocol == "aligned" else None for protocol in protocols)

    def read(index: int) -> dict[str, np.ndarray] | None:
        try:
            image, heatmap, label = decode(records, index, classes)
        except RecordError:
            if not skip_bad:
                raise
            return None
        return {
            "image": transform(Image.fromarray(picture(image, np.uint8))),  # truncated, as the study did
            "heatmaps": human_maps(heatmap, fields),
            "label": np.asarray(label, np.int32),
        }

    return read


def _what_is_wrong(records: Records, index: int, classes: int) -> str:
    try:
        decode(records, index, classes)
    except RecordError as error:
        return str(error)
    path, number = records.place(index)
    return f"{path}, record {number}: could not be read"


def _summary(result: Result) -> dict[str, object]:
    return {
        "alignment": result.alignment,
        "mean_spearman": result.mean_spearman,
        "images": result.images,
        "skipped": result.skipped,
        "bad_records": list(result.bad_records),
        "seconds": result.seconds,
    }

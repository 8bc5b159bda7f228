"""Human alignment on ClickMe: Spearman's correlation of a model's maps with the heatmaps of people's clicks.

Protocol of Fel et al. 2022 (serre-lab/Harmonization), with the model side of the DCLS study (arXiv 2408.03164): the
label is explained, ranks are averaged over ties, the score is the mean over images divided by the human ceiling.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import grain
import jax
import numpy as np
import simplejpeg
from flax import nnx
from google.protobuf.message import DecodeError
from jax import Array
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from dcls_jax.eval.rank import spearman
from dcls_jax.eval.records import Paths, RecordError, Records
from dcls_jax.eval.results import ResultsFolder, check_writable
from dcls_jax.eval.runner import Runner
from dcls_jax.eval.study import study_maps
from dcls_jax.freezing import freeze
from dcls_jax.models import Backbone, Transform

HUMAN_CEILING = 0.65753  # mean correlation of one half of the people with the other
SIZE = 224  # side of the images and of all maps compared

_MOST_PIXELS = 4096 * 4096  # of a picture in a record, 256 times ClickMe's; a header may claim 4 billion
_BLUR_INPUT, _BLUR_TAPS, _BLUR_SIGMA = 64, 10, 10.0
_BAND = 56  # rows of an image that are resized together
_TILE = 32, 112  # of a human map: how much of it one matrix product makes

T = TypeVar("T")
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
            image, heatmap, label = _decode(records, index)
        except RecordError:
            if skip_bad:
                return None  # grain leaves it out
            raise
        path, number = records.place(index)
        return Sample(_picture(image, np.float32), _human_maps(heatmap, (None,))[0], label, str(path), number)

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
            image, heatmap, label = _decode(records, index, classes)
        except RecordError:
            if not skip_bad:
                raise
            return None
        return {
            "image": transform(Image.fromarray(_picture(image, np.uint8))),  # truncated, as the study did
            "heatmaps": _human_maps(heatmap, fields),
            "label": np.asarray(label, np.int32),
        }

    return read


def _decode(records: Records, index: int, classes: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """One record as stored: image (H, W, 3) and heatmap (h, w), both uint8, and label, of so many classes if given."""
    data, (path, number) = records[index], records.place(index)
    try:
        features = tf_example_pb2.Example.FromString(data).features.feature
        label = int(_first(features["label"].int64_list.value, "label"))
        image, heatmap = (_first(features[name].bytes_list.value, name) for name in ("image", "heatmap"))
        stored = _pixels(image, "image", "RGB"), _pixels(heatmap, "heatmap", "GRAY")[..., 0], label
    except (DecodeError, ValueError) as error:
        raise RecordError(f"{path}, record {number}: not a ClickMe example ({error})") from error
    if classes is not None and not 0 <= label < classes:
        raise RecordError(f"{path}, record {number}: label {label}, but the model has classes 0 to {classes - 1}")
    return stored


def _what_is_wrong(records: Records, index: int, classes: int) -> str:
    try:
        _decode(records, index, classes)
    except RecordError as error:
        return str(error)
    path, number = records.place(index)
    return f"{path}, record {number}: could not be read"


def _first(values: Sequence[T], name: str) -> T:
    if not values:
        raise ValueError(f"it has no {name}")
    return values[0]


def _pixels(jpeg: bytes, name: str, colours: str) -> np.ndarray:
    """A JPEG by libjpeg's fast integer transform, as TensorFlow decodes by default: (H, W, channels) uint8."""
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    if height * width > _MOST_PIXELS:
        raise ValueError(f"its {name} claims {width} x {height} pixels, expected {_MOST_PIXELS} at most")
    return simplejpeg.decode_jpeg(jpeg, colours, fastdct=True)


def _picture(image: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """The image (H, W, 3) uint8 -> (224, 224, 3), as float32 or truncated to uint8."""
    height, width, channels = image.shape
    rows = image.reshape(height, width * channels)
    columns, (low, high, fraction) = _taps(width, SIZE, channels), _taps(height, SIZE)
    picture = np.empty((SIZE, SIZE * channels), dtype)
    # Columns before rows, as TensorFlow does: then the values, and what truncation makes of them, are equal to the bit.
    # By bands: what lies between stays in the cache, and is small enough for the allocator to keep.
    for start in range(0, SIZE, _BAND):
        band = slice(start, start + _BAND)
        first, last = low[band][0], high[band][-1]
        wide = _between(rows[first : last + 1].astype(np.float32), *columns, axis=1)
        picture[band] = _between(wide, low[band] - first, high[band] - first, fraction[band], axis=0)
    return picture.reshape(SIZE, SIZE, channels)


def _human_maps(heatmap: np.ndarray, fields: tuple[Transform | None, ...]) -> np.ndarray:
    """The comparable maps (fields, 224, 224) float32 of a heatmap (h, w) uint8.

    Everything after the first resize is linear and one matrix per axis.
    """
    small = _resize(_resize(heatmap.astype(np.float32), _BLUR_INPUT, axis=1), _BLUR_INPUT, axis=0)
    rows, columns = _human_tiles(fields)
    tiles = (rows @ small)[:, :, None] @ columns
    return tiles.swapaxes(2, 3).reshape(len(fields), SIZE, SIZE)


@lru_cache
def _human_tiles(fields: tuple[Transform | None, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`_human_axes` of all fields, cut up: rows (fields, 7, 32, 64), columns (fields, 1, 2, 64, 112).

    For a product of more than 64 * 64 * 64 terms OpenBLAS wakes threads, of which all readers share one pool, and waits
    for them spinning; smaller ones stay in the reader's thread. With AVX-512 these tiles, multiples of the kernel's
    own, have every sum in the order of the whole product; with AVX2 that order depends on the number of threads.
    """
    rows, columns = map(np.stack, zip(*map(_human_axes, fields), strict=True))
    height, width = _TILE
    shape = len(fields), 1, SIZE // width, width, _BLUR_INPUT
    return (
        rows.reshape(len(fields), SIZE // height, height, _BLUR_INPUT),
        np.ascontiguousarray(columns.reshape(shape).swapaxes(3, 4)),
    )


@lru_cache
def _human_axes(field: Transform | None) -> tuple[np.ndarray, np.ndarray]:
    """(224, 64) for rows and for columns: blur, resize to 224, and then the part that `field` keeps, at 224 again.

    The original blur has an even number of taps: rows reach 4 back and 5 ahead around the peak, columns peak one ahead,
    which shifts the map left by one pixel of 64 (Harmonization, common/blur.py).
    """
    offsets = np.arange(_BLUR_TAPS) - (_BLUR_TAPS - 1) // 2
    axes = (_frame(_resize(_blur(offsets, peak), SIZE, axis=0), field) for peak in (0, 1))
    rows, columns = (axis.astype(np.float32) for axis in axes)
    return rows, columns


def _blur(offsets: np.ndarray, peak: int) -> np.ndarray:
    """Correlation with a Gaussian over `offsets`, zeros beyond the border, as a matrix (64, 64)."""
    taps = np.exp(-((offsets - peak) ** 2) / (2 * _BLUR_SIGMA**2))
    taps /= taps.sum()
    matrix = np.zeros((_BLUR_INPUT, _BLUR_INPUT))
    for offset, tap in zip(offsets, taps, strict=True):
        matrix += tap * np.eye(_BLUR_INPUT, k=offset)
    return matrix


def _frame(x: np.ndarray, field: Transform | None) -> np.ndarray:
    """The first axis of a 224-pixel image as `field` frames it (`Transform.framed`), at 224 again."""
    if field is None:
        return x
    start = round((field.resize - field.crop) / 2)
    return _resize(_resize(x, field.resize, axis=0)[start : start + field.crop], SIZE, axis=0)


def _resize(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """A matrix, bilinear along one axis, pixel centres at half, no antialiasing: `tf.image.resize`."""
    return _between(x, *_taps(x.shape[axis], size), axis)


def _between(x: np.ndarray, low: np.ndarray, high: np.ndarray, fraction: np.ndarray, axis: int) -> np.ndarray:
    """low + (high - low) * fraction of a matrix's rows (axis 0) or columns, in one array: new memory costs the most."""
    below, result = x.take(low, axis), x.take(high, axis)
    result -= below
    result *= fraction if axis else fraction[:, None]
    result += below
    return result


@cache
def _taps(old: int, new: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_between`'s indices and fractions for an axis of pixels with their channels side by side."""
    half = np.float32(0.5)  # in float32, as TensorFlow does it: 255 levels times its rounding would show
    centre = (np.arange(new, dtype=np.float32) + half) * np.float32(old / new) - half
    pixel = np.floor(centre).astype(np.intp)
    low, high = (
        (near[:, None] * channels + np.arange(channels)).ravel()
        for near in (pixel.clip(0), (pixel + 1).clip(max=old - 1))
    )
    return low, high, (centre - pixel.astype(np.float32)).repeat(channels)


def _summary(result: Result) -> dict[str, object]:
    return {
        "alignment": result.alignment,
        "mean_spearman": result.mean_spearman,
        "images": result.images,
        "skipped": result.skipped,
        "bad_records": list(result.bad_records),
        "seconds": result.seconds,
    }

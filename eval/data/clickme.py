"""ClickMe's records, and the pictures and maps that TensorFlow and Harmonization make of them, on the CPU."""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np
import simplejpeg
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from dcls_jax.eval.data.records import Paths, RecordError, Records
from dcls_jax.models import Transform

SIZE = 224  # side of the images and of all maps compared
# The validation split, of which the study's loader missed the last file: 17 of 18, 3072 records each.
URL = "https://storage.googleapis.com/serrelab/prj_harmonization/dataset/click-me/val/val-{}.tfrecords"
STUDY_FILES, FILE_RECORDS = 17, 3072

_MOST_PIXELS = 4096 * 4096  # of a picture in a record, 256 times ClickMe's; a header may claim 4 billion
_BLUR_INPUT, _BLUR_TAPS, _BLUR_SIGMA = 64, 10, 10.0
_BAND = 56  # rows of an image that are resized together
_TILE = 32, 112  # of a human map: how much of it one matrix product makes

T = TypeVar("T")


class Sample(NamedTuple):
    """One picture with what people clicked on: image (224, 224, 3), 0 to 255, and heatmap (224, 224), both float32.

    Of a batch that grain makes, each is an array with a leading batch axis.
    """

    image: np.ndarray
    heatmap: np.ndarray
    label: int
    file: str
    record: int


class Stored(NamedTuple):
    """A record as it is stored: image (H, W, 3) and heatmap (h, w), both uint8, and label."""

    image: np.ndarray
    heatmap: np.ndarray
    label: int


class ClickMe:
    """ClickMe's records in the order of their files: a source of `Stored`. Raises as `Records` does."""

    def __init__(self, paths: Paths, *, skip_bad: bool = False) -> None:
        self._records = Records(paths, skip_bad=skip_bad)
        self.damage: Sequence[str] = self._records.damage

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Stored:
        data = self._records[index]
        try:
            features = tf_example_pb2.Example.FromString(data).features.feature
            label = int(_first(features["label"].int64_list.value, "label"))
            image, heatmap = (_first(features[name].bytes_list.value, name) for name in ("image", "heatmap"))
            return Stored(_pixels(image, "image", "RGB"), _pixels(heatmap, "heatmap", "GRAY")[..., 0], label)
        except (DecodeError, ValueError) as error:
            raise RecordError(f"{self.place(index)}: not a ClickMe example ({error})") from error

    def file(self, index: int) -> tuple[Path, int]:
        """The file of a record and its number there."""
        return self._records.place(index)

    def place(self, index: int) -> str:
        """Where a record is, as messages say it."""
        path, number = self.file(index)
        return f"{path}, record {number}"

    def identity(self) -> list[dict[str, Any]]:
        """The files, as JSON values."""
        return [{"file": s.name, "bytes": s.size, "records": len(s.offsets)} for s in self._records.shards]


def load(paths: Paths, *, skip_bad: bool = False) -> grain.MapDataset[Sample]:
    """ClickMe records as the original loader presents them: a grain dataset of `Sample`, in data order.

    paths: a record file, a glob, a folder of *.tfrecords, or a list of these. skip_bad: leave out what cannot be read.
    Raises FileNotFoundError, and RecordError naming file and record (at once, or when the record is reached).
    """
    source = ClickMe(paths, skip_bad=skip_bad)

    def read(index: int) -> Sample | None:
        try:
            image, heatmap, label = source[index]
        except RecordError:
            if skip_bad:
                return None  # grain leaves it out
            raise
        path, number = source.file(index)
        return Sample(picture(image, np.float32), human_maps(heatmap, (None,))[0], label, str(path), number)

    return grain.MapDataset.source(range(len(source))).map(read)


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


def picture(image: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
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


def human_maps(heatmap: np.ndarray, fields: tuple[Transform | None, ...]) -> np.ndarray:
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

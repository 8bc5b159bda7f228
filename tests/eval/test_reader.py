"""What a reader of ClickMe hands to the model: the study's arithmetic to the bit, in the thread that reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import simplejpeg
import tiny
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from dcls_jax.eval import clickme
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.data.records import Records, write_records
from dcls_jax.eval.program import padded
from dcls_jax.models import Transform

TRANSFORMS = [Transform(256, 224), Transform(224, 224), Transform(284, 256), Transform(235, 224)]
SIZES = [(256, 256), (224, 224), (300, 400), (100, 90), (500, 375)]


def bilinear(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """TensorFlow's resize of one axis, its weights in float32, in the words of its definition."""
    x, old, half = np.moveaxis(x, axis, 0), x.shape[axis], np.float32(0.5)
    rows = []
    for place in range(size):
        centre = (np.float32(place) + half) * np.float32(old / size) - half
        low = int(np.floor(centre))
        below, above = x[max(low, 0)], x[min(low + 1, old - 1)]
        rows.append(below + (above - below) * (centre - np.float32(low)))
    return np.moveaxis(np.stack(rows), 0, axis)


def blurred(x: np.ndarray, axis: int, peak: int) -> np.ndarray:
    """Correlation of one axis with ten taps of a Gaussian, from four back to five ahead, zeros beyond the border."""
    offsets = np.arange(-4, 6)
    taps = np.exp(-((offsets - peak) ** 2) / 200)
    x = np.pad(np.moveaxis(x, axis, 0), [(4, 5), (0, 0)])
    result = sum(tap * x[k : k + 64] for k, tap in enumerate(taps / taps.sum()))
    return np.moveaxis(np.asarray(result), 0, axis)


def seen(x: np.ndarray, transform: Transform, axis: int) -> np.ndarray:
    start = round((transform.resize - transform.crop) / 2)
    enlarged = bilinear(x, transform.resize, axis)
    return bilinear(enlarged.take(range(start, start + transform.crop), axis), 224, axis)


def coarse(seed: int, *shape: int) -> np.ndarray:
    """Pixels in which neighbours resemble each other, with some noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (shape[0] // 16, shape[1] // 16, *shape[2:]), np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize(shape[1::-1]), np.int16)
    return (smooth + rng.integers(-20, 21, shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One record of each size."""
    path = tmp_path_factory.mktemp("pictures") / "val-0.tfrecords"
    examples = []
    for seed, (height, width) in enumerate(SIZES):
        message = tf_example_pb2.Example()
        feature = message.features.feature
        feature["image"].bytes_list.value.append(tiny.jpeg(coarse(seed, height, width, 3)))
        feature["heatmap"].bytes_list.value.append(tiny.jpeg(coarse(seed, height, width)))
        feature["label"].int64_list.value.append(seed)
        examples.append(message.SerializeToString())
    write_records(path, examples)
    return path


def stored(pictures: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and heatmap of a record as the decoder gives them, in float32."""
    feature = tf_example_pb2.Example.FromString(Records(pictures)[index]).features.feature
    image, heatmap = (feature[key].bytes_list.value[0] for key in ("image", "heatmap"))
    return (
        simplejpeg.decode_jpeg(image, "RGB", fastdct=True).astype(np.float32),
        simplejpeg.decode_jpeg(heatmap, "GRAY", fastdct=True)[..., 0].astype(np.float32),
    )


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: f"{transform.resize}-{transform.crop}")
def test_images_are_the_plain_arithmetic_to_the_bit(pictures: Path, transform: Transform) -> None:
    source, prepare = ClickMe(pictures), clickme._preparation(transform, clickme.PROTOCOLS, classes=10)
    for index, sample in enumerate(clickme.load(pictures)):
        resized = bilinear(bilinear(stored(pictures, index)[0], 224, axis=1), 224, axis=0)
        np.testing.assert_array_equal(sample.image, resized)
        whole = Image.fromarray(resized.astype(np.uint8)).resize((transform.resize,) * 2, Image.Resampling.BICUBIC)
        start = round((transform.resize - transform.crop) / 2)
        framed = np.asarray(whole)[start:, start:][: transform.crop, : transform.crop]
        mean, std = (np.asarray(values, np.float32) for values in (transform.mean, transform.std))
        record = prepare(source[index])
        np.testing.assert_array_equal(record.pixels, framed)
        assert (record.pixels.dtype, record.label) == (np.uint8, index)
        images = transform.normalised(record.pixels)
        np.testing.assert_array_equal(images, (framed.astype(np.float32) / 255 - mean) / std)
        assert images.dtype == np.float32
        np.testing.assert_allclose(jax.jit(transform.normalised)(record.pixels), images, 1e-6, 1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: f"{transform.resize}-{transform.crop}")
def test_heatmaps_are_blurred_and_framed_in_steps(pictures: Path, transform: Transform) -> None:
    source, prepare = ClickMe(pictures), clickme._preparation(transform, clickme.PROTOCOLS, classes=10)
    for index, sample in enumerate(clickme.load(pictures)):
        small = bilinear(bilinear(stored(pictures, index)[1], 64, axis=1), 64, axis=0).astype(np.float64)
        blurry = blurred(blurred(small, axis=0, peak=0), axis=1, peak=1)
        published = bilinear(bilinear(blurry, 224, axis=0), 224, axis=1)
        aligned = seen(seen(published, transform, axis=0), transform, axis=1)
        heatmaps = prepare(source[index]).heatmaps
        np.testing.assert_allclose(heatmaps, [published, aligned], rtol=0, atol=1e-6 * published.max())
        np.testing.assert_array_equal(sample.heatmap, heatmaps[0])


READING = """
import json, sys, time
import numpy as np
from dcls_jax.eval import clickme
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.models import Transform

def others():
    return time.process_time() - time.thread_time()

def share(work):
    "CPU time of other threads per CPU time of this one."
    work()
    before = None
    while before is None or others() - before > 1e-3:  # threads turn for a while before they fall asleep
        before = others()
        time.sleep(0.2)
    start = time.thread_time()
    for _ in range(4):
        work()
    return (others() - before) / (time.thread_time() - start)

source, matrix = ClickMe(sys.argv[1]), np.ones((500, 500))
prepare = clickme._preparation(Transform(256, 224), clickme.PROTOCOLS, classes=10)
read = share(lambda: [prepare(source[index]) for index in range(5)])
print(json.dumps({"read": read, "product": share(lambda: [matrix @ matrix for _ in range(10)])}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="numpy of other systems may have another BLAS; on one core BLAS has no other thread",
)
def test_reading_wakes_no_other_thread(pictures: Path) -> None:
    """Each reader is one of many threads: what it computes stays in it, and leaves BLAS's threads asleep."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", READING, str(pictures)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    share = json.loads(finished.stdout)
    assert share["product"] > 0.1  # BLAS has another thread, and this is how it shows
    assert share["read"] < 0.05


def test_the_last_batch_is_padded_with_zeros() -> None:
    rows = [np.full((2, 3), value, np.float32) for value in (1, 2)]
    batch = padded(rows, 5)
    assert (batch.shape, batch.dtype) == ((5, 2, 3), np.float32)
    np.testing.assert_array_equal(batch[:2], rows)
    assert not batch[2:].any()

"""Draws the pictures of the built-in sample and writes them as ClickMe's own TFRecord shards.

Every picture shows one object of ten classes (`CLASSES`) among objects of other shapes (`DISTRACTORS`), painted the
same way, over clutter: nothing but one outline tells the class. The "human" heatmap is that object, blurred.

    python examples/draw_sample.py eval/sample
    python examples/draw_sample.py pictures --folders --count 320    # as `dcls-jax finetune --data pictures` takes them
"""

import argparse
import colorsys
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from shapes import CLASSES, DISTRACTORS, Array, Outline, points, polar, rotation
from tensorflow_datasets.proto import tf_example_pb2

from dcls_jax.eval import write_records

SIZE = 256  # pixels, ClickMe's
MARGIN = 0.07  # of the size; a centre crop of 224 / 256 cuts 0.0625 from each side and must not cut the object
OVERSAMPLING = 4
HEATMAP_BLUR = 10.0  # pixels

Split = Literal["train", "held_out", "sample"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "sample")
OBJECTS = tuple(CLASSES.values())
OTHERS = tuple(DISTRACTORS.values())


class Picture(NamedTuple):
    """An image (size, size, 3) and its heatmap (size, size), both uint8, and the index of its object in `CLASSES`."""

    image: NDArray[np.uint8]
    heatmap: NDArray[np.uint8]
    label: int


class Place(NamedTuple):
    """Where an object is: centre and radius in pixels, angle in radians, width over height."""

    x: float
    y: float
    radius: float
    angle: float
    stretch: float


# ----- Painting ------------------------------------------------------------------------------------------------------


def to_image(array: Array) -> Image.Image:
    return Image.fromarray(np.round(255 * array.clip(0, 1)).astype(np.uint8))


def to_array(image: Image.Image) -> Array:
    return np.asarray(image, np.float32) / 255


def blur(array: Array, kernel: ImageFilter.MultibandFilter) -> Array:
    return to_array(to_image(array).filter(kernel))


def polygon_mask(outline: Outline, place: Place, size: int) -> Array:
    """Coverage (size, size) in [0, 1] of an outline centred in a square patch."""
    canvas = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    scale = place.radius * points((place.stretch, 1 / place.stretch)) / max(place.stretch, 1 / place.stretch)
    for polygon, ink in zip(outline, (255, 0), strict=False):
        corners = (polygon * scale) @ rotation(place.angle) + size / 2
        draw.polygon([tuple(corner) for corner in (corners * OVERSAMPLING).tolist()], fill=ink)
    return to_array(canvas.reduce(OVERSAMPLING))


def smooth_noise(rng: Generator, size: int, scale: int) -> Array:
    """Noise (size, size) about 0 that varies over `scale` pixels."""
    cells = -(-size // scale) + 1
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    box = (0, 0, size / scale, size / scale)
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC, box))


def colour(rng: Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(*value)), np.float32)


def texture(rng: Generator, across: Array, along: Array) -> Array:
    """A pattern in [0, 1] over a patch whose coordinates run from -1 to 1: a gradient, stripes, waves or spots."""
    frequency, phase = rng.uniform(6, 14), rng.uniform(0, 2 * np.pi)
    kind = rng.choice(4, p=(0.4, 0.2, 0.2, 0.2))
    if kind == 0:
        return ((across + 1) / 2).clip(0, 1)
    if kind == 1:
        return (2 * np.sin(frequency * across + phase) + 0.5).clip(0, 1)
    if kind == 2:
        return (2 * np.sin(frequency * across + 2 * np.sin(3 * along + phase)) + 0.5).clip(0, 1)
    return (4 * np.sin(frequency * across + phase) * np.sin(frequency * along) - 1).clip(0, 1)


def paint_object(canvas: Array, outline: Outline, place: Place, rng: Generator) -> Array:
    """Paints an object with its texture, rounded edge and shadow into `canvas`; returns its mask (size, size)."""
    width = canvas.shape[0]
    size = 2 * int(np.ceil(1.2 * place.radius))
    mask = polygon_mask(outline, place, size)
    soft = blur(mask, ImageFilter.BoxBlur(0.12 * place.radius))
    shadow = 0.6 * np.roll(soft, 2 + int(0.06 * place.radius), axis=(0, 1))

    axis = (np.arange(size, dtype=np.float32) - size / 2) / np.float32(place.radius)
    turn = np.float32(rng.uniform(0, 2 * np.pi))
    across = np.cos(turn) * axis + np.sin(turn) * axis[:, None]
    along = np.cos(turn) * axis[:, None] - np.sin(turn) * axis
    hue = rng.uniform()
    first = colour(rng, hue, (0.55, 0.95), (0.75, 1.0))
    second = colour(rng, hue + rng.uniform(-0.12, 0.12), (0.4, 0.9), (0.45, 0.95))
    mix = 0.8 * texture(rng, across, along)[..., None]
    paint = (first + (second - first) * mix) * (0.45 + 0.6 * soft[..., None])

    left, top = int(place.x) - size // 2, int(place.y) - size // 2
    inside = np.s_[max(-top, 0) : width - top, max(-left, 0) : width - left]
    spot = np.s_[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
    cover, dark = mask[inside][..., None], 1 - shadow[inside][..., None]
    canvas[spot] = canvas[spot] * dark * (1 - cover) + paint[inside] * cover
    full = np.zeros((width, width), np.float32)
    full[spot] = mask[inside]
    return full


def background(rng: Generator, size: int) -> Array:
    """Muted noise (size, size, 3) at several scales under strokes and blobs."""
    hue = rng.uniform()
    low = colour(rng, hue, (0.05, 0.4), (0.15, 0.45))
    high = colour(rng, hue + rng.uniform(-0.2, 0.2), (0.05, 0.35), (0.5, 0.85))
    field = smooth_noise(rng, size, 84) / 1.3 + smooth_noise(rng, size, 28) / 2.5 + smooth_noise(rng, size, 6) / 4.5
    layer = to_image(low + (high - low) * (0.5 + 0.5 * field).clip(0, 1)[..., None])
    draw = ImageDraw.Draw(layer, "RGBA")
    for _ in range(rng.integers(12, 24) * size // SIZE):
        tint = colour(rng, rng.uniform(), (0.0, 0.35), (0.1, 0.9))
        fill = (*(int(255 * channel) for channel in tint), int(rng.integers(50, 140)))
        start = rng.uniform(0, size, 2)
        if rng.uniform() < 0.6:
            steps = rng.normal(0, 22, (4, 2)).cumsum(axis=0)
            draw.line([tuple(point) for point in (start + steps).tolist()], fill, int(rng.integers(1, 5)), "curve")
        else:
            corners = start + polar(rng.uniform(4, 16, 9).astype(np.float32), np.arange(9) / 9)
            draw.polygon([tuple(corner) for corner in corners.tolist()], fill)
    return to_array(layer)


def random_place(rng: Generator, size: int, radii: tuple[float, float], margin: float, turn: float) -> Place:
    radius = rng.uniform(*radii)
    low, high = margin + radius, size - margin - radius
    x, y = rng.uniform(low, high, 2)
    return Place(x, y, radius, rng.uniform(-turn, turn), rng.uniform(0.9, 1.1))


def apart(place: Place, others: Iterable[Place]) -> bool:
    """Whether an object hides no more than the rim of the others."""
    return all(np.hypot(place.x - o.x, place.y - o.y) > 0.9 * (place.radius + o.radius) for o in others)


def draw(split: Split, index: int, *, seed: int = 0, size: int = SIZE) -> Picture:
    """Draws picture `index` of a split: the same picture for the same arguments, whatever was drawn before.

    Labels go round: `index % 10`. A smaller `size` has objects of the same size, so fewer of them. Raises `ValueError`
    for an unknown split and for a size below 160, which leaves no room to move the largest object.
    """
    if split not in SPLITS:
        raise ValueError(f"split (={split!r}) must be one of {SPLITS}")
    if size < 160:
        raise ValueError(f"size (={size}) must be at least 160")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CLASSES)
    canvas = background(rng, size)
    place = random_place(rng, size, (44, 66), MARGIN * size, 0.6)
    places = [place]
    for _ in range(8):  # tries, of which some find no room
        other = random_place(rng, size, (20, 36), -10, np.pi)
        if len(places) < 5 and apart(other, places):
            places.append(other)
            paint_object(canvas, OTHERS[rng.integers(len(OTHERS))], other, rng)
    mask = paint_object(canvas, OBJECTS[label], place, rng)
    canvas += 0.05 * (rng.random((size, size, 1), np.float32) - 0.5)
    heatmap = blur(mask, ImageFilter.GaussianBlur(HEATMAP_BLUR))
    return Picture(np.asarray(to_image(canvas)), np.asarray(to_image(heatmap / heatmap.max())), label)


# ----- Records -------------------------------------------------------------------------------------------------------


def encode_jpeg(array: NDArray[np.uint8], quality: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_example(picture: Picture) -> bytes:
    """A picture as ClickMe stores it: a serialised `tf.train.Example` of `image`, `heatmap` (JPEG) and `label`."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(encode_jpeg(picture.image, 84))
    feature["heatmap"].bytes_list.value.append(encode_jpeg(picture.heatmap, 90))
    feature["label"].int64_list.value.append(picture.label)
    return example.SerializeToString(deterministic=True)


def write_sample(folder: Path, *, count: int = 128, shards: int = 2, seed: int = 0) -> list[Path]:
    """Draws `count` pictures of the split "sample" into `folder`/val-0.tfrecords, val-1.tfrecords, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"val-{shard}.tfrecords" for shard in range(shards)]
    for path, indices in zip(paths, np.array_split(np.arange(count), shards), strict=True):
        write_records(path, (encode_example(draw("sample", int(index), seed=seed)) for index in indices))
    return paths


def write_folders(folder: Path, *, count: int = 128, seed: int = 0) -> list[Path]:
    """Draws `count` pictures to learn from, and as many to test with: `folder`/train/CLASS/*.jpg and .../val/CLASS."""
    names, parts = list(CLASSES), [folder / "train", folder / "val"]
    for part, split in zip(parts, ("train", "held_out"), strict=True):
        for index in range(count):
            picture = draw(split, index, seed=seed)
            path = part / names[picture.label] / f"{index:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_jpeg(picture.image, 84))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the shards, or folders, are written")
    parser.add_argument("--count", type=int, default=128, help="number of pictures, of folders twice (%(default)s)")
    parser.add_argument("--shards", type=int, default=2, help="number of files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures (%(default)s)")
    parser.add_argument("--folders", action="store_true", help="folders of pictures to train and test with, no shards")
    options = parser.parse_args()
    if options.folders:
        for part in write_folders(options.folder, count=options.count, seed=options.seed):
            print(f"{part}: {options.count} pictures of {len(CLASSES)} classes")
        return
    for path in write_sample(options.folder, count=options.count, shards=options.shards, seed=options.seed):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

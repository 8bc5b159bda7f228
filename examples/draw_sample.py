"""Draws the pictures of the built-in sample and writes them as ClickMe's own TFRecord shards.

Every picture shows one object of ten classes (`CLASSES`) among objects of other shapes (`DISTRACTORS`), painted the
same way, over clutter: nothing but one outline tells the class. The "human" heatmap is that object, blurred.

    python examples/draw_sample.py eval/sample
"""

import argparse
import colorsys
import os
import struct
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import google_crc32c
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from tensorflow_datasets.proto import tf_example_pb2

SIZE = 256  # pixels, ClickMe's
MARGIN = 0.07  # of the size; a centre crop of 224 / 256 cuts 0.0625 from each side and must not cut the object
OVERSAMPLING = 4
HEATMAP_BLUR = 10.0  # pixels

Array = NDArray[np.floating]
Outline = tuple[Array, ...]  # polygons (points, 2) inside the unit circle: the first is filled, the second is a hole
Split = Literal["train", "held_out", "sample"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "sample")


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


# ----- Outlines ------------------------------------------------------------------------------------------------------


def points(*coordinates: tuple[float, float]) -> Array:
    return np.array(coordinates, np.float32)


def polar(radius: Array | float, turn: Array) -> Array:
    """Points (n, 2) at `radius` and `turn` (n,), in whole turns from the right."""
    return np.stack([radius * np.cos(2 * np.pi * turn), radius * np.sin(2 * np.pi * turn)], axis=-1).astype(np.float32)


def rotation(angle: float) -> Array:
    """The matrix (2, 2) that turns row vectors by `angle` radians: `points @ rotation(angle)`."""
    return points((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle)))


def circle(radius: float) -> Array:
    return polar(radius, np.linspace(0, 1, 72, endpoint=False))


def regular(*radii: float, repeat: int) -> Array:
    """The corners of a polygon whose radii are `radii`, `repeat` times round."""
    count = len(radii) * repeat
    return polar(np.tile(np.array(radii, np.float32), repeat), np.arange(count) / count)


def heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return points(*zip(16 * np.sin(t) ** 3 / 16.5, -(y + 2.5) / 16.5, strict=True))


def crescent() -> Array:
    return np.concatenate(
        [polar(1.0, np.linspace(0.1, 0.9, 60)), polar(0.75, np.linspace(0.86, 0.14, 60)) + points((0.32, 0.0))]
    )


def spiral() -> Array:
    turn = np.linspace(0.3, 2.3, 120)
    middle = 0.86 * turn / turn[-1]
    return np.concatenate([polar(middle + 0.12, turn), polar(middle - 0.12, turn)[::-1]])


def leaf() -> Array:
    x = np.linspace(-1, 1, 30)
    return points(*zip(x, 0.45 * (1 - x**2), strict=True), *zip(-x, 0.45 * (x**2 - 1), strict=True))


def wave() -> Array:
    x = np.linspace(-0.95, 0.95, 60)
    y = 0.4 * np.sin(1.6 * np.pi * x)
    return points(*zip(x, y - 0.2, strict=True), *zip(x[::-1], y[::-1] + 0.2, strict=True))


def capsule() -> Array:
    end = polar(0.32, np.linspace(-0.25, 0.25, 24)) + points((0.68, 0.0))
    return np.concatenate([end, -end])


CLASSES: dict[str, Outline] = {
    "disc": (circle(0.85),),
    "ring": (circle(0.95), circle(0.52)),
    "square": (regular(1.0, repeat=4),),
    "triangle": (regular(1.0, repeat=3),),
    "star": (regular(1.0, 0.42, repeat=5),),
    "cross": (np.concatenate([points((1, -0.3), (1, 0.3), (0.3, 0.3)) @ rotation(k * np.pi / 2) for k in range(4)]),),
    "crescent": (crescent(),),
    "heart": (heart(),),
    "arrow": (points((1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28), (-1, -0.28), (0.1, -0.28), (0.1, -0.8)),),
    "spiral": (spiral(),),
}
DISTRACTORS: dict[str, Outline] = {
    "leaf": (leaf(),),
    "wave": (wave(),),
    "capsule": (capsule(),),
    "half": (polar(0.9, np.linspace(0, 0.5, 40)) - points((0.0, 0.4)),),
    "bolt": (points((0.3, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)),),
    "hourglass": (points((0.6, 0.8), (-0.6, 0.8), (-0.1, 0), (-0.6, -0.8), (0.6, -0.8), (0.1, 0)),),
    "angle": (points((-0.7, -0.7), (-0.25, -0.7), (-0.25, 0.25), (0.7, 0.25), (0.7, 0.7), (-0.7, 0.7)),),
}
OUTLINES = tuple(CLASSES.values())
OTHERS = tuple(DISTRACTORS.values())


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
    kind = rng.integers(4)
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
    mix = texture(rng, across, along)[..., None]
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


def random_place(rng: Generator, size: int, radii: tuple[float, float], margin: float) -> Place:
    radius = rng.uniform(*radii)
    low, high = margin + radius, size - margin - radius
    turn, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.18)
    return Place(rng.uniform(low, high), rng.uniform(low, high), radius, turn, stretch)


def apart(place: Place, others: Iterable[Place]) -> bool:
    """Whether an object hides no more than the rim of the others."""
    return all(np.hypot(place.x - o.x, place.y - o.y) > 0.9 * (place.radius + o.radius) for o in others)


def draw(split: Split, index: int, *, seed: int = 0, size: int = SIZE) -> Picture:
    """Draws picture `index` of a split: the same picture for the same arguments, whatever was drawn before.

    Labels go round: `index % 10`. A smaller `size` has objects of the same size, so fewer of them. Raises `ValueError`
    for an unknown split and for a size below 128, which could not hold the largest object.
    """
    if split not in SPLITS:
        raise ValueError(f"split (={split!r}) must be one of {SPLITS}")
    if size < 128:
        raise ValueError(f"size (={size}) must be at least 128")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CLASSES)
    canvas = background(rng, size)
    place = random_place(rng, size, (34, 54), MARGIN * size)
    places = [place]
    for _ in range(12):  # tries, of which some find no room
        other = random_place(rng, size, (22, 44), -12)
        if len(places) < 6 and apart(other, places):
            places.append(other)
            paint_object(canvas, OTHERS[rng.integers(len(OTHERS))], other, rng)
    mask = paint_object(canvas, OUTLINES[label], place, rng)
    canvas += 0.015 * rng.standard_normal((size, size, 1), np.float32)
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


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C rotated right by 15 bits plus a constant (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes a TFRecord file; it appears under its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc(length)) + record + struct.pack("<I", masked_crc(record)))
    os.replace(partial, path)


def write_sample(folder: Path, *, count: int = 128, shards: int = 2, seed: int = 0) -> list[Path]:
    """Draws `count` pictures of the split "sample" into `folder`/val-0.tfrecords, val-1.tfrecords, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"val-{shard}.tfrecords" for shard in range(shards)]
    for path, indices in zip(paths, np.array_split(np.arange(count), shards), strict=True):
        write_records(path, (encode_example(draw("sample", int(index), seed=seed)) for index in indices))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the shards are written")
    parser.add_argument("--count", type=int, default=128, help="number of pictures (%(default)s)")
    parser.add_argument("--shards", type=int, default=2, help="number of files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures (%(default)s)")
    options = parser.parse_args()
    for path in write_sample(options.folder, count=options.count, shards=options.shards, seed=options.seed):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

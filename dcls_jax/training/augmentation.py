"""What a training picture goes through on the host, as in timm 1.0's `create_transform(is_training=True)`.

A random part of the picture, resized; its mirror image, half of the time; RandAugment, or else colour jitter. What is
erased is drawn here too, and erased on the device (`normalised`), after the channels are normalised as in timm.
Everything random comes from the generator that is handed in.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image, ImageEnhance

from dcls_jax.training.rand_augment import Colour, Look, RandAugment

Interpolation = Literal["bilinear", "bicubic", "random"]
Box = tuple[int, int, int, int]  # left, top, right, bottom of a picture's pixels, right and bottom outside

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_RATIO = 3 / 4, 4 / 3  # of a part's width to its height
_ERASED_SHARE = 0.02, 1 / 3  # of the picture
_ERASED_RATIO = 0.3, 1 / 0.3
_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """size: side of what the model sees, in pixels. scale: shares of the picture's area that a part may have.

    interpolation: of resizing and of RandAugment; "random" is one of the other two each time. rand_augment: None for
    none, and then brightness, contrast and saturation vary by factors within 1 +- colour_jitter, in a random order.
    erasing: probability with which a rectangle becomes noise. fill: of what comes from outside the picture.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    rand_augment: RandAugment | None = field(default_factory=RandAugment)
    colour_jitter: float = 0.4
    erasing: float = 0.25
    fill: Colour = (124, 116, 104)  # the mean of ImageNet

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale (={self.scale}) must be two rising shares of the picture in (0, 1]")
        if self.interpolation not in (*_RESAMPLING, "random"):
            raise ValueError(f"interpolation (={self.interpolation!r}) must be bilinear, bicubic or random")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """An RGB picture -> what is seen of it (size, size, 3) uint8, and what is erased (4,) int32, of `erased`."""
        part = image.crop(random_part(image.size, self.scale, rng))
        image = part.resize((self.size, self.size), self._resampling(rng))
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            image = self.rand_augment(image, rng, lambda: Look(self._resampling(rng), self.fill))
        elif self.colour_jitter:
            image = jittered(image, self.colour_jitter, rng)
        return np.asarray(image), erased(self.size, self.erasing, rng)

    def _resampling(self, rng: np.random.Generator) -> Image.Resampling:
        name = ("bilinear", "bicubic")[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        return _RESAMPLING[name]


def random_part(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A part of a picture of `size` (width, height), of a random share of its area and a ratio of 3:4 to 4:3.

    Where none of ten fits, the largest central part with such a ratio (torchvision, `RandomResizedCrop`).
    """
    width, height = size
    for _ in range(_ATTEMPTS):
        w, h = _sides(width * height * rng.uniform(*scale), _RATIO, rng)
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def erased(side: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """A rectangle to erase of a square picture (arXiv 1708.04896): left, top, right, bottom, int32; zeros for none."""
    none = np.zeros(4, np.int32)
    if rng.random() >= probability:
        return none
    for _ in range(_ATTEMPTS):
        w, h = _sides(side * side * rng.uniform(*_ERASED_SHARE), _ERASED_RATIO, rng)
        if w < side and h < side:
            left, top = rng.integers(side - w + 1), rng.integers(side - h + 1)
            return np.array([left, top, left + w, top + h], np.int32)
    return none


def _sides(area: float, ratios: tuple[float, float], rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of a rectangle of an area, the logarithm of their ratio uniform."""
    ratio = math.exp(rng.uniform(math.log(ratios[0]), math.log(ratios[1])))
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))


def jittered(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each by a factor, in a random order (torchvision, `ColorJitter`)."""
    kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    for index in rng.permutation(len(kinds)):
        image = kinds[index](image).enhance(rng.uniform(max(0, 1 - strength), 1 + strength))
    return image


def normalised(images: Array, boxes: Array, key: Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """Images (B, H, W, C) uint8 as the model sees them, float32, with noise N(0, 1) in boxes (B, 4) of `erased`."""
    x = (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
    left, top, right, bottom = (edge[:, None, None] for edge in boxes.T)
    rows, columns = jnp.arange(x.shape[1])[:, None], jnp.arange(x.shape[2])[None, :]
    inside = (left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)
    return jnp.where(inside[..., None], jax.random.normal(key, x.shape), x)

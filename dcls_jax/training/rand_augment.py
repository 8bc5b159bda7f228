"""RandAugment (arXiv 1909.13719) by Pillow, in timm's form: operations that grow stronger with the magnitude.

timm 1.0 calls it `rand-m9-mstd0.5-inc1`: two operations of fifteen, each done with probability one half, at a magnitude
drawn from N(9, 0.5) within [0, 10].
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Colour = tuple[int, int, int]
_FULL = 10.0  # the magnitude at which an operation has its whole strength


class Look(NamedTuple):
    """How a geometric operation resamples, and the colour of what comes from outside."""

    resample: Image.Resampling
    fill: Colour


class Operation(NamedTuple):
    """argument(strength, sign) for a strength in [0, 1] and a sign of 1 or -1, and what is done with it."""

    argument: Callable[[float, int], float]
    apply: Callable[[Image.Image, float, Look], Image.Image]


def _affine(image: Image.Image, matrix: tuple[float, ...], look: Look) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=look.resample, fillcolor=look.fill)


def _rotate(image: Image.Image, degrees: float, look: Look) -> Image.Image:
    return image.rotate(degrees, resample=look.resample, fillcolor=look.fill)


def _brighten_dark(image: Image.Image, add: float, _: Look) -> Image.Image:
    """SolarizeAdd: pixels below 128 become brighter."""
    levels = np.arange(256)
    return image.point(np.where(levels < 128, np.minimum(levels + int(add), 255), levels).tolist() * 3)


def _posterise(image: Image.Image, bits: float, _: Look) -> Image.Image:
    """The upper bits alone; at the whole strength none, which newer versions of Pillow refuse."""
    return image.point([level & -(1 << (8 - int(bits))) for level in range(256)] * 3)


def _enhanced(kind: type) -> Operation:
    """By a factor around 1, which is no change."""
    return Operation(
        lambda strength, sign: max(0.1, 1 + sign * 0.9 * strength),
        lambda image, factor, _: kind(image).enhance(factor),
    )


def _signed(largest: float) -> Callable[[float, int], float]:
    return lambda strength, sign: sign * largest * strength


def _nothing(strength: float, sign: int) -> float:
    return 0.0


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(_nothing, lambda image, *_: ImageOps.autocontrast(image)),
    "Equalize": Operation(_nothing, lambda image, *_: ImageOps.equalize(image)),
    "Invert": Operation(_nothing, lambda image, *_: ImageOps.invert(image)),
    "Rotate": Operation(_signed(30.0), _rotate),
    "PosterizeIncreasing": Operation(lambda strength, _: 4 - int(4 * strength), _posterise),
    "SolarizeIncreasing": Operation(
        lambda strength, _: 256 - int(256 * strength),
        lambda image, threshold, _: ImageOps.solarize(image, int(threshold)),
    ),
    "SolarizeAdd": Operation(lambda strength, _: int(110 * strength), _brighten_dark),
    "ColorIncreasing": _enhanced(ImageEnhance.Color),
    "ContrastIncreasing": _enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhanced(ImageEnhance.Sharpness),
    "ShearX": Operation(_signed(0.3), lambda image, it, look: _affine(image, (1, it, 0, 0, 1, 0), look)),
    "ShearY": Operation(_signed(0.3), lambda image, it, look: _affine(image, (1, 0, 0, it, 1, 0), look)),
    "TranslateXRel": Operation(
        _signed(0.45), lambda image, it, look: _affine(image, (1, 0, it * image.width, 0, 1, 0), look)
    ),
    "TranslateYRel": Operation(
        _signed(0.45), lambda image, it, look: _affine(image, (1, 0, 0, 0, 1, it * image.height), look)
    ),
}
_NAMES = list(OPERATIONS)


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations, each with a probability, at a magnitude in [0, 10] that varies by a standard deviation."""

    magnitude: float = 9.0
    deviation: float = 0.5
    layers: int = 2
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= _FULL:
            raise ValueError(f"magnitude (={self.magnitude}) must be in [0, {_FULL:g}]")

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Of timm's name, "rand-m9-mstd0.5-inc1" say. Raises ValueError for anything that is not built like it."""
        parts = dict(re.findall(r"-(m|n|p|mstd|inc)([\d.]+)(?=-|$)", text))
        if text != "rand" + "".join(f"-{key}{value}" for key, value in parts.items()) or parts.get("inc") != "1":
            raise ValueError(f"rand_augment (={text!r}) must be like rand-m9-mstd0.5-inc1")
        return cls(
            magnitude=float(parts.get("m", _FULL)),
            deviation=float(parts.get("mstd", 0)),
            layers=int(parts.get("n", 2)),
            probability=float(parts.get("p", 0.5)),
        )

    def __call__(self, image: Image.Image, rng: np.random.Generator, look: Callable[[], Look]) -> Image.Image:
        """An RGB picture, changed; `look` is asked anew for each operation."""
        for name in rng.choice(_NAMES, self.layers):
            if rng.random() < self.probability:
                magnitude = np.clip(rng.normal(self.magnitude, self.deviation), 0, _FULL)
                image = operate(image, str(name), float(magnitude), 1 if rng.random() < 0.5 else -1, look())
        return image


def operate(image: Image.Image, name: str, magnitude: float, sign: int, look: Look) -> Image.Image:
    """One operation of OPERATIONS on an RGB picture, at a magnitude in [0, 10], in the direction of a sign."""
    operation = OPERATIONS[name]
    return operation.apply(image, operation.argument(magnitude / _FULL, sign), look)

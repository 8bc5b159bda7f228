"""What of a picture a model sees in an evaluation: each preset has a frame, made from the model's own transform."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jax import Array
from PIL import Image

from dcls_jax.eval.data.records import RecordError
from dcls_jax.models import Transform
from dcls_jax.models.transform import Picture, as_picture

# own: as the model sees pictures; whole: squashed to the crop; centre: the shorter side is the crop's, no margin is cut
# off it; eighth: it is an eighth longer than what is seen of it, 256 pixels of which 224 are seen, whatever the model.
FRAMES: dict[str, Callable[[Transform], Transform]] = {
    "own": lambda transform: transform,
    "whole": lambda transform: transform.whole,
    "centre": lambda transform: replace(transform, resize=transform.crop, squash=False),
    "eighth": lambda transform: replace(transform, resize=transform.crop * 8 // 7, squash=False),
}


class Views(NamedTuple):
    """The different transforms of several presets, and which of them each has."""

    transforms: tuple[Transform, ...]
    of: Mapping[str, int]

    def __hash__(self) -> int:  # equal ones are found by it, which makes metrics of them one program
        return hash(self.transforms)

    def transform(self, preset: str) -> Transform:
        """That of a preset."""
        return self.transforms[self.of[preset]]

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """A picture by each transform: (views, crop, crop, 3) uint8."""
        return np.stack([transform.pixels(picture) for transform in self.transforms])

    def images(self, pixels: Array) -> list[Array]:
        """Pixels of a batch (B, views, crop, crop, 3) -> a model's inputs (B, crop, crop, 3) float32, of each view."""
        return [transform.normalised(pixels[:, view]) for view, transform in enumerate(self.transforms)]

    @property
    def blank(self) -> np.ndarray:
        """Zeros, as `pixels` has them."""
        crop = self.transforms[0].crop
        return np.zeros((len(self.transforms), crop, crop, 3), np.uint8)


def views_of(transform: Transform, frames: Mapping[str, str]) -> Views:
    """Of a model's transform and the frames of presets, by name."""
    transforms = {preset: FRAMES[frame](transform) for preset, frame in frames.items()}
    different = tuple(dict.fromkeys(transforms.values()))
    return Views(different, {preset: different.index(it) for preset, it in transforms.items()})


def picture_of(image: Picture) -> Image.Image:
    """A picture of any kind as Pillow's, read whole. Raises RecordError for what is none."""
    try:
        picture = as_picture(image)
        picture.load()
    except (ValueError, OSError) as error:
        raise RecordError(str(error)) from error
    return picture

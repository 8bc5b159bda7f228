"""Pictures with labels, and what a model sees of one: all that some metrics need."""

from typing import Any, NamedTuple

import numpy as np

from dcls_jax.eval.data.folder import Folder
from dcls_jax.eval.data.source import Samples, check_label
from dcls_jax.eval.frames import picture_of
from dcls_jax.models import Transform

# Image and label, whatever follows. An image is of Pillow, an array (H, W, 3) uint8 or the path of a file.
Sample = tuple[Any, ...]


class Record(NamedTuple):
    """What the model sees of a picture (crop, crop, 3) uint8, and the label () int32; of a batch, (B, ...)."""

    pixels: Any
    label: Any


def blank_record(transform: Transform) -> Record:
    """A record of zeros."""
    return Record(np.zeros((transform.crop, transform.crop, 3), np.uint8), np.zeros((), np.int32))


def record_of(sample: Sample, *, transform: Transform, classes: int) -> Record:
    """The record of a sample. Raises RecordError for a label that the model does not have, and no picture."""
    image, label, *_ = sample
    check_label(label, classes)
    return Record(transform.pixels(picture_of(image)), np.asarray(label, np.int32))


def check_classes(samples: Samples[Sample], classes: int) -> None:
    """Raise ValueError for a folder that has not as many classes as the model."""
    if isinstance(samples, Folder) and len(samples.classes) != classes:
        raise ValueError(f"samples are a folder of {len(samples.classes)} classes, expected the model's {classes}")

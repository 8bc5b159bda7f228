"""Small data sets in the formats of the real ones."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Noise (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def prepare(
    folder: Path, name: str, split: str, features: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    """Write records as TFDS does when it prepares the data set `name`, "voc/2007" say, as array_record."""
    dataset, _, config = name.partition("/")

    def generate(_: Any) -> Any:
        return enumerate(records)

    methods = {
        "name": dataset,
        "VERSION": tfds.core.Version("1.0.0"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config, version="1.0.0")] if config else [],
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features)),
        "_split_generators": lambda self, _: {split: self._generate_examples()},
        "_generate_examples": generate,
    }
    with registered.skip_registration():
        builder = type("Made", (tfds.core.GeneratorBasedBuilder,), methods)
        built = builder(data_dir=folder, file_format="array_record", **({"config": config} if config else {}))
        built.download_and_prepare()


def by_record(source: Any) -> dict[str, Any]:
    """All samples, which TFDS shuffles, by name."""
    return {sample.name: sample for sample in (source[i] for i in range(len(source)))}

"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import io
from abc import ABC, abstractmethod
from os import PathLike
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.registered import DatasetNotFoundError

from dcls_jax.eval.data.folder import pixels

S = TypeVar("S")


class Prepared(ABC, Generic[S]):
    """Samples of a split, of what `_sample` makes of a picture (H, W, 3) uint8 and its record.

    name: "voc/2007", say. data_dir: the folder of all data sets that TFDS prepared, its own unless given. Raises
    FileNotFoundError where the data are missing, or not in a format that is read at random, and says how to get them;
    ValueError for a split that there is not; RecordError, when it is reached, for a picture that cannot be read.
    """

    damage: tuple[str, ...] = ()

    def __init__(self, name: str, split: str, data_dir: str | PathLike[str] | None = None) -> None:
        self._name, self._split = name, split
        dataset, _, config = name.partition("/")
        options: dict[str, Any] = {"data_dir": data_dir} | ({"config": config} if config else {})
        decoders: Any = {"image": tfds.decode.SkipDecoding()}  # TFDS would turn pictures by EXIF where OpenCV is there
        try:
            builder = read_only_builder.builder_from_files(dataset, **options)
            self._records = builder.as_data_source(split, decoders=decoders)
        except (DatasetNotFoundError, NotImplementedError) as error:
            where, option = (f" in {data_dir}", f" --data_dir={data_dir}") if data_dir else ("", "")
            build = f"tfds build {name} --file_format=array_record{option}"
            raise FileNotFoundError(f"no {name} as array_record{where}; once, with TensorFlow: {build}") from error
        self._version = str(builder.version)

    @abstractmethod
    def _sample(self, image: np.ndarray, record: dict[str, Any]) -> S: ...

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> S:
        record = self._records[index]
        return self._sample(pixels(io.BytesIO(record["image"]), self.place(index)), record)

    def place(self, index: int) -> str:
        """Where a record is, as messages say it."""
        return f"{self._name}, {self._split}, record {index}"

    def identity(self) -> dict[str, Any]:
        """What tells these data from others, as JSON values."""
        return {"dataset": self._name, "version": self._version, "split": self._split, "records": len(self)}

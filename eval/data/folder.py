"""Pictures in the usual layout, a folder per class, and what all sources of picture files share."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from dcls_jax.eval import RecordError
from dcls_jax.models.transform import opened

S = TypeVar("S")

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


class PictureFiles(ABC, Generic[S]):
    """Samples of picture files below a folder, of what `_sample` makes of a picture (H, W, 3) uint8 and its number.

    A picture that cannot be read raises RecordError when it is reached.
    """

    damage: tuple[str, ...] = ()

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder, self._files = folder, files

    @abstractmethod
    def _sample(self, image: np.ndarray, index: int) -> S: ...

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> S:
        return self._sample(pixels(self._files[index], self.place(index)), index)

    def place(self, index: int) -> str:
        """The file of a picture."""
        return str(self._files[index])

    def name(self, index: int) -> str:
        """The file of a picture, below the folder."""
        return self._files[index].relative_to(self._folder).as_posix()

    def identity(self) -> dict[str, Any]:
        """What tells these data from others, as JSON values: how many files, and a hash of their names and sizes."""
        digest = hashlib.sha256()
        for index, path in enumerate(self._files):
            digest.update(f"{self.name(index)} {path.stat().st_size}\n".encode(errors="surrogateescape"))
        return {"folder": self._folder.name, "files": len(self), "names_and_sizes": digest.hexdigest()[:16]}


class Pictures(PictureFiles[tuple[np.ndarray, str]]):
    """Pictures anywhere below a folder, with no more than the names of their files, in the order of these.

    Raises FileNotFoundError, which says what to put where, for a folder without pictures.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        root = Path(folder)
        super().__init__(root, picture_files(root))
        if not self._files:
            raise FileNotFoundError(f"no pictures in {folder}; put some there, as {root / 'some.JPEG'}")

    def _sample(self, image: np.ndarray, index: int) -> tuple[np.ndarray, str]:
        return image, self.name(index)


class Sample(NamedTuple):
    """One picture: image (H, W, 3) uint8, the number of its class, and its file's name below the folder."""

    image: np.ndarray
    label: int
    name: str


class Folder(PictureFiles[Sample]):
    """Pictures in a folder per class, whose names in order are the classes 0, 1, and so on, as torchvision has them.

    Raises FileNotFoundError, which says what to put where, for a folder without pictures.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        root = Path(folder)
        self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
        by_class = [picture_files(root / name) for name in self.classes]
        super().__init__(root, [path for paths in by_class for path in paths])
        self._labels = [label for label, paths in enumerate(by_class) for _ in paths]
        if not self._labels:
            example = root / "n01440764" / "some.JPEG"
            raise FileNotFoundError(f"no pictures of classes in {folder}; put a folder for each there, as {example}")

    def _sample(self, image: np.ndarray, index: int) -> Sample:
        return Sample(image, self._labels[index], self.name(index))


def picture_files(folder: Path) -> list[Path]:
    """The picture files in a folder and those in it, in order."""
    return [
        Path(path) / file
        for path, _, files in sorted(os.walk(folder, followlinks=True))
        for file in sorted(files)
        if file.lower().endswith(_ENDINGS)
    ]


def pixels(file: Path | io.BytesIO, place: str) -> np.ndarray:
    """A picture as its file has it: (H, W, 3) uint8.

    Not turned by what EXIF says, as neither boxes nor published evaluations are. Raises RecordError, which says where.
    """
    try:
        picture = Image.open(file) if isinstance(file, io.BytesIO) else opened(file)
        return np.array(picture.convert("RGB"))
    except Exception as error:  # of many kinds, for what is one thing to the user
        raise RecordError(f"{place}: no picture that can be read ({error})") from error

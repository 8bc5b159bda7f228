"""Pictures to learn from, and to test with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcls_jax.eval.data.folder import Folder
from dcls_jax.eval.data.imagenet import ImageNet
from dcls_jax.eval.data.source import Source
from dcls_jax.models import imagenet_classes

IMAGENET = "imagenet2012"


class Data(NamedTuple):
    """Pictures to learn from, pictures to test with, if there are any, and the classes' names, by number."""

    train: Source[Any]
    validation: Source[Any] | None
    classes: Sequence[str]


def data_of(place: str, *, hold_out: float = 0.1) -> Data:
    """What a command's --data names: TFDS's "imagenet2012", or a folder with one of pictures for each class.

    Where the folder has `train` and `val` instead, these are such folders. Otherwise so large a share of the pictures
    is held out to test with, every tenth, say, in the order of classes and files.
    Raises FileNotFoundError, which says what to put where, and ValueError for classes that differ, or a share outside
    [0, 1).
    """
    if not 0 <= hold_out < 1:
        raise ValueError(f"hold_out (={hold_out}) must be in [0, 1)")
    if place == IMAGENET:
        return Data(ImageNet("train"), ImageNet("validation"), imagenet_classes())
    root = Path(place).expanduser()
    if (root / "train").is_dir():
        learned = Folder(root / "train")
        test = Folder(root / "val") if (root / "val").is_dir() else None
        if test and test.classes != learned.classes:
            odd = sorted({*test.classes} ^ {*learned.classes})
            raise ValueError(f"{root} has classes in one of train and val alone: {', '.join(odd[:5])}")
        return Data(learned, test, learned.classes)
    folder = Folder(root)
    every = round(1 / hold_out) if hold_out else len(folder) + 1
    held_out = [i for i in range(len(folder)) if i % every == every - 1]
    kept = sorted({*range(len(folder))} - {*held_out})
    return Data(_Some(folder, kept), _Some(folder, held_out) if held_out else None, folder.classes)


class _Some:
    """Some samples of a source."""

    damage: Sequence[str] = ()

    def __init__(self, source: Source[Any], numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Any:
        return self._source[self._numbers[index]]

    def place(self, index: int) -> str:
        return self._source.place(self._numbers[index])

    def identity(self) -> Any:
        return {"samples": len(self), "first": self._numbers[:1], "of": self._source.identity()}

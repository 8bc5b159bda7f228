"""The main job in miniature, offline: two small models and a drawn sample in ClickMe's format, both in the package."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from PIL import Image

from dcls_jax.cam import show_maps
from dcls_jax.cam.maps import normalise
from dcls_jax.eval import clickme, localisation
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.data.regions import Region
from dcls_jax.eval.metric import Result
from dcls_jax.eval.results import check_writable
from dcls_jax.eval.study import STUDY, study_maps
from dcls_jax.files import write_bytes
from dcls_jax.models import Backbone, load_model, preprocess

SAMPLE = Path(__file__).parent / "sample"
NAMES = ("convnext", "convnext_dcls")
SHUFFLED = "convnext_shuffled"
CLASSES = 10
WHERE: dict[str, localisation.Preset] = {
    "pointing": replace(localisation.POINTING_PRESETS["torchray_voc"], data="the sample", classes=CLASSES),
    "iba": localisation.INSIDE_PRESETS["iba"],
    "masks": replace(localisation.MASK_PRESETS["voc_masks"], source="Outlines of the sample", classes=CLASSES),
    "wsol": localisation.BOX_PRESETS["wsol"],
}


def sample_models() -> dict[str, Backbone]:
    """The two ConvNeXts of the sample, by name, as examples/train_sample.py made them."""
    return {name: sample_model(name) for name in NAMES}


def sample_model(name: str, *, dtype: DTypeLike | None = None) -> Backbone:
    """One of them, which computes in `dtype`."""
    return load_model(SAMPLE / name, dtype=dtype)


def shuffled_model(*, dtype: DTypeLike | None = None) -> Backbone:
    """The "convnext" that learned 200 pictures with shuffled labels by heart, for `sanity.label_randomisation`."""
    return load_model(SAMPLE / f"{SHUFFLED}.safetensors", dtype=dtype)


def sample_pictures() -> list[tuple[np.ndarray, int]]:
    """The sample's 128 pictures (224, 224, 3) uint8, and their labels."""
    return [(sample.image.astype(np.uint8), sample.label) for sample in clickme.load(SAMPLE)]


def run(out: Path, *, pictures: int = 2, dtype: str = "float32") -> list[Result]:
    """Evaluate both models and both methods of the study on the sample, and draw maps of its first pictures.

    out: the folder for results folders, `report.html` and `maps.png`; a killed run goes on where it stopped.
    """
    from dcls_jax.eval.suite import Plan, finish, study  # which know the sample

    check_writable(out)
    stored, _ = finish.run(Plan(study.suite(sample=True, dtype=dtype), out))
    results = [result for found in stored for result in found.results]
    draw(out / "maps.png", {name: sample_model(name, dtype=dtype) for name in NAMES}, pictures)
    return results


class SampleObjects:
    """The sample with its objects as regions, for localisation: where the human heatmap is above half its maximum.

    That heatmap is the drawn object, blurred, whose half is about the outline. The box is the least around that.
    """

    def __init__(self) -> None:
        self._records = ClickMe(SAMPLE)
        self.damage, self.place, self.identity = self._records.damage, self._records.place, self._records.identity

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> "SampleObject":
        image, heatmap, label = self._records[index]
        return SampleObject(image, label, heatmap)

    def region_count(self, index: int) -> int:
        """One: every picture has one object."""
        return 1


class SampleObject(NamedTuple):
    """A picture of the sample: image (H, W, 3) uint8, label, and heatmap (H, W) uint8."""

    image: np.ndarray
    label: int
    heatmap: np.ndarray

    @property
    def regions(self) -> dict[int, Region]:
        """That of its object."""
        mask = self.heatmap > self.heatmap.max() / 2
        rows, columns = np.nonzero(mask)
        return {self.label: Region(mask, np.array([[columns.min(), rows.min(), columns.max(), rows.max()]]))}


def draw(path: Path, models: dict[str, Backbone], pictures: int) -> None:
    """A grid of the sample's first pictures: as the models see them, then under the human heatmap and each map."""
    samples = list(islice(clickme.load(SAMPLE), pictures))
    frame = next(iter(models.values())).transform.framed
    images = [Image.fromarray(sample.image.astype(np.uint8)) for sample in samples]
    people = [np.asarray(frame(Image.fromarray(sample.heatmap))) for sample in samples]
    maps: dict[str, ArrayLike] = {"people": np.stack(people)}
    labels = np.array([sample.label for sample in samples])
    for name, model in models.items():
        of_model = _maps(model, preprocess(images, model), labels)
        maps |= {f"{name}\n{method}": of_method for method, of_method in of_model.items()}
    grid = show_maps([np.asarray(frame(image)) for image in images], maps)
    write_bytes(path, grid.png())


@jax.jit
def _maps(model: Backbone, images: Array, labels: Array) -> dict[str, Array]:
    return {method: normalise(study_maps(model, images, labels, method=method)) for method in STUDY}

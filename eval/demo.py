"""The main job in miniature, offline: two small models and a drawn sample in ClickMe's format, both in the package."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from PIL import Image

from dcls_jax.cam import show_maps
from dcls_jax.cam.maps import normalise
from dcls_jax.eval import accuracy, clickme, faithfulness, localisation, sanity
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.data.regions import Region
from dcls_jax.eval.metric import Result, Settings
from dcls_jax.eval.results import check_writable
from dcls_jax.eval.study import STUDY, study_maps
from dcls_jax.files import write_bytes
from dcls_jax.layers import DclsConfig
from dcls_jax.models import Backbone, create_model, preprocess

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
    return {name: _trained(name, SAMPLE / name) for name in NAMES}


def shuffled_model() -> Backbone:
    """The "convnext" that learned 200 pictures with shuffled labels by heart, for `sanity.label_randomisation`."""
    return _trained(SHUFFLED, SAMPLE / f"{SHUFFLED}.safetensors")


def _trained(name: str, weights: Path) -> Backbone:
    config = json.loads((SAMPLE / f"{name}.json").read_text())["config"]
    setting = config.pop("dcls")
    dcls = DclsConfig(**setting) if setting else False
    return create_model("convnext_tiny", dcls=dcls, weights=weights, num_classes=CLASSES, **config)


def sample_pictures() -> list[tuple[np.ndarray, int]]:
    """The sample's 128 pictures (224, 224, 3) uint8, and their labels."""
    return [(sample.image.astype(np.uint8), sample.label) for sample in clickme.load(SAMPLE)]


def run(out: Path, *, pictures: int = 2) -> list[clickme.Result]:
    """Evaluate both models and both methods of the study on the sample, and draw maps of its first pictures.

    out: the folder for a results folder per evaluation and `maps.png`; a killed run goes on where it stopped.
    """
    check_writable(out)
    models = sample_models()
    results = [
        clickme.evaluate(model, SAMPLE, method=method, out=out / f"{name}-{method}", name=name)
        for name, model in models.items()
        for method in STUDY
    ]
    draw(out / "maps.png", models, pictures)
    return results


def suite(out: Path) -> list[Result]:
    """Both models by every evaluation, and the maps of one against those of the same trained on shuffled labels.

    What takes long is of one method and of the sample's first pictures, as OF_MAPS has it. out: the folder for a
    results folder per evaluation; a killed run goes on where it stopped.
    """
    check_writable(out)
    models, pictures = sample_models(), SampleObjects()
    first = [pictures[index] for index in range(max(part.pictures or 0 for part in OF_MAPS))]

    def settings(*names: str, batch_size: int = 32) -> Settings:
        return Settings(out=out / "-".join(names), name=names[1], batch_size=batch_size)

    results = [accuracy.evaluate(model, pictures, settings("accuracy", name)) for name, model in models.items()]
    for part in OF_MAPS:
        samples, size = (first[: part.pictures], part.pictures) if part.pictures else (pictures, 32)
        by_model = [
            part.evaluate(model, samples, settings(part.name, name, method, batch_size=size), method)
            for name, model in models.items()
            for method in part.methods
        ]
        results += chain.from_iterable(zip(*by_model, strict=True))  # preset by preset
    learned, by_heart = models[NAMES[0]], shuffled_model()
    settings_of = settings("shuffled", NAMES[0], batch_size=16)
    return [*results, sanity.label_randomisation(learned, by_heart, first[:16], settings_of)]


def _alignment(model: Backbone, samples: Any, settings: Settings, method: str) -> Sequence[Result]:
    return clickme.evaluate_protocols(model, SAMPLE, ("aligned",), method=method, settings=settings)


def _localisation(model: Backbone, samples: Any, settings: Settings, method: str) -> Sequence[Result]:
    return localisation.evaluate(model, samples, settings, method=method, presets=WHERE)


def _faithfulness(model: Backbone, samples: Any, settings: Settings, method: str) -> Sequence[Result]:
    presets = ("rise", "torch_cam_change", "adcc")
    return faithfulness.evaluate(model, samples, settings, method=method, presets=presets)


def _road(model: Backbone, samples: Any, settings: Settings, method: str) -> Sequence[Result]:
    return faithfulness.evaluate(model, samples, settings, method=method, presets=("road",))


def _sanity(model: Backbone, samples: Any, settings: Settings, method: str) -> Sequence[Result]:
    return sanity.evaluate(model, samples, settings, method=method)[-1:]  # the mean over layers


class Part(NamedTuple):
    """An evaluation of maps in the suite: evaluate(model, samples, settings, method) -> results, alike for all models.

    methods: of the maps. pictures: the sample's first so many; all of them unless given.
    """

    name: str
    evaluate: Callable[[Backbone, Any, Settings, str], Sequence[Result]]
    methods: Sequence[str] = tuple(STUDY)
    pictures: int | None = None


OF_MAPS = (
    Part("clickme", _alignment),
    Part("localisation", _localisation),
    Part("faithfulness", _faithfulness, pictures=32),
    Part("road", _road, ("grad_cam",), 8),
    Part("sanity", _sanity, ("grad_cam",), 16),
)


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

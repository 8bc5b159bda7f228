"""The main job in miniature, offline: two small models and a drawn sample in ClickMe's format, both in the package."""

import json
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from PIL import Image

from dcls_jax.cam import show_maps
from dcls_jax.cam.maps import normalise
from dcls_jax.eval import clickme
from dcls_jax.eval.results import check_writable, write_bytes
from dcls_jax.eval.study import STUDY, study_maps
from dcls_jax.layers import DclsConfig
from dcls_jax.models import Backbone, create_model, preprocess

SAMPLE = Path(__file__).parent / "sample"
NAMES = ("convnext", "convnext_dcls")
SHUFFLED = "convnext_shuffled"
CLASSES = 10


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

"""Trains a small ConvNeXt of the built-in sample, standard or DCLS, on pictures drawn as they are needed.

Everything random comes from one seed: picture i of a run is `draw("train", i, seed=seed)` and the first weights are
those of `nnx.Rngs(seed)`. A run that was killed goes on from its last checkpoint and ends with the same parameters.

    python examples/train_sample.py convnext eval/sample --work results/train/convnext
    python examples/train_sample.py convnext_dcls eval/sample --work results/train/convnext_dcls

A model that learns shuffled labels by heart sees nothing in pictures that tells a class, and its maps should show it
(`dcls_jax.eval.sanity.label_randomisation`). Its weights are kept in half precision:

    python examples/train_sample.py convnext eval/sample --work results/train/convnext_shuffled \
        --shuffled 200 --steps 400 --small-steps 0
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import grain
import jax
import numpy as np
import optax
from draw_sample import CLASSES, SIZE, draw, encode_example
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from dcls_jax import DclsConfig, Positions, training
from dcls_jax.eval import clickme, write_records
from dcls_jax.models import Backbone, create_model, save_weights, state_dict
from dcls_jax.training.data import Batch
from dcls_jax.training.log import read
from dcls_jax.training.loop import Plan
from dcls_jax.training.loop import train as train_steps
from dcls_jax.training.step import data_mesh, initial_state, make_step, model_of, parts_of

Labelled = tuple[np.ndarray, np.ndarray]  # an image (side, side, 3) and its label ()

SMALL = 160  # pixels
CROP = 224  # pixels, what the models' transform keeps of SIZE
# What `create_model("convnext_tiny", ...)` is given, besides the number of classes.
SHAPE = {"depths": (1, 1, 2, 1), "dims": (8, 24, 64, 128), "layer_scale_init_value": 1.0}
MODELS: dict[str, dict[str, Any]] = {
    "convnext": {**SHAPE, "dcls": False},
    "convnext_dcls": {**SHAPE, "dcls": DclsConfig(kernel_count=16, dilated_kernel_size=13, version="v1")},
}


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: AdamW, a linear warm-up, then a cosine down to zero.

    The first `small_steps` see pictures of 160 x 160 pixels, with one or two distractors, at half the cost: the object
    must be seen before it can be found. The rest see pictures like the evaluation's. position_spread: how far apart
    the elements of DCLS kernels start, as a multiple of the package's initialisation. shuffled: how many pictures are
    seen, over and over, with their labels shuffled among them; 0 for ever new ones with their own labels.
    """

    steps: int = 2200
    small_steps: int = 1100
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 30
    weight_decay: float = 0.05
    position_spread: float = 5.0
    save_every: int = 50
    seed: int = 0
    shuffled: int = 0

    @property
    def plain(self) -> training.Recipe:
        """The recipe as the library has it, in which an epoch is one step: without all that makes pictures harder."""
        return training.Recipe(
            model="convnext_tiny",
            dcls=None,
            epochs=self.steps,
            warmup_epochs=self.warmup_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            minimum=0.0,
            weight_decay=self.weight_decay,
            drop_path_rate=0.0,
            repulsion_from=None,
            smoothing=0.0,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
            seed=self.seed,
        )


# ----- Data ----------------------------------------------------------------------------------------------------------


def training_batches(recipe: Recipe, start: int, stop: int) -> Iterator[Batch]:
    """A run's batches of steps from `start` on, small pictures first, drawn by two threads while the model computes."""
    labels = shuffled_labels(recipe.shuffled, seed=recipe.seed)

    def drawn(index: int, size: int) -> Labelled:
        picture = draw("train", index, seed=recipe.seed, size=size)
        edge = (size - min(size, CROP)) // 2
        return picture.image[edge : size - edge, edge : size - edge], np.array(picture.label)

    known = cache(drawn)  # pictures that come again are drawn once

    def load(index: int) -> Labelled:
        size = SMALL if index < recipe.small_steps * recipe.batch_size else SIZE
        if not len(labels):
            return drawn(index, size)
        number = index % len(labels)
        return known(number, size)[0], labels[number]

    pictures = grain.MapDataset.range(start * recipe.batch_size, stop * recipe.batch_size)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    nothing = np.zeros((1, recipe.batch_size, 4), np.int32)  # is erased
    for images, of_them in pictures.map(load).batch(recipe.batch_size).to_iter_dataset(options):
        yield Batch(images[None], of_them[None].astype(np.int32), nothing)


def shuffled_labels(count: int, *, seed: int) -> np.ndarray:
    """The labels of the first pictures in another order, (count,)."""
    return np.random.default_rng(seed).permutation(np.arange(count) % len(CLASSES))


def accuracy(model: Backbone, records: Path | list[Path], batch_size: int = 32) -> float:
    """The share of pictures in ClickMe records that a model names, shown to it as `clickme.evaluate` shows them."""
    graphdef, params = nnx.split(model)
    classify = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images).argmax(-1))

    def load(sample: clickme.Sample) -> Labelled:
        return model.transform(Image.fromarray(sample.image.astype(np.uint8))), np.array(sample.label)

    correct = [
        np.asarray(classify(params, images)) == labels
        for images, labels in clickme.load(records).map(load).batch(batch_size)
    ]
    return float(np.concatenate(correct).mean())


# ----- Training ------------------------------------------------------------------------------------------------------


def spread_positions(model: nnx.Module, factor: float) -> None:
    """Draws the elements of every DCLS kernel apart, in place, up to the border of its grid.

    They start within a cell of the centre, where a DCLS sees little more than one pixel; a short run has no time for
    them to part by themselves.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Positions):
            module.P[...] *= factor
            module.clamp()


def train(name: str, config: dict[str, Any], recipe: Recipe, folder: Path) -> tuple[Backbone, list[dict[str, float]]]:
    """Trains a small ConvNeXt, or goes on with it from the last checkpoint in `folder`.

    Returns the trained model and its history: the rows of its log, between checkpoints.
    """
    model = create_model("convnext_tiny", num_classes=len(CLASSES), rngs=nnx.Rngs(recipe.seed), **config)
    spread_positions(model, recipe.position_spread)
    parts, mesh, plain = parts_of(model), data_mesh(), recipe.plain
    optimise = optax.chain(optax.clip_by_global_norm(1.0), plain.optimiser(1))
    step = make_step(
        parts,
        optimise,
        plain,
        num_classes=len(CLASSES),
        mean=model.transform.mean,
        std=model.transform.std,
        steps_per_epoch=1,
        mesh=mesh,
    )
    plan = Plan(recipe.steps, 1, recipe.batch_size, log_every=recipe.save_every, save_every=recipe.save_every)

    @contextmanager
    def progress(left: int) -> Iterator[Callable[[int, str], None]]:
        if left < recipe.steps:
            print(f"{name}: goes on from step {recipe.steps - left}")
        done = recipe.steps - left

        def report(count: int, line: str) -> None:
            nonlocal done
            done += count
            if line:
                print(f"{name}: step {done} of {recipe.steps}, {line.partition(', ')[2]}", flush=True)

        yield report

    state = train_steps(
        step,
        initial_state(parts, optimise, average=False),
        partial(training_batches, recipe),
        plan,
        folder,
        mesh=mesh,
        learning_rate=plain.schedule(1),
        progress=progress,
    )
    shown = {"step": int, "loss": float, "accuracy": float, "images_per_second": float}
    history = [{column: kind(row[column]) for column, kind in shown.items()} for row in read(folder / "log.csv")]
    return cast(Backbone, model_of(parts, state)), history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS, help="which model")
    parser.add_argument("folder", type=Path, help="where FOLDER/MODEL, the weights, and FOLDER/MODEL.json are written")
    parser.add_argument("--work", type=Path, required=True, help="folder of the running training's checkpoints")
    parser.add_argument("--held-out", type=int, default=2000, help="pictures to measure the accuracy on (%(default)s)")
    for field in dataclasses.fields(Recipe):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default, help="(%(default)s)")
    options = parser.parse_args()
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)})
    config = MODELS[options.model]
    model, history = train(options.model, config, recipe, options.work)
    with TemporaryDirectory() as folder:
        records = Path(folder) / "held_out.tfrecords"
        pictures = (draw("held_out", index, seed=recipe.seed) for index in range(options.held_out))
        write_records(records, map(encode_example, pictures))
        score = accuracy(model, records)
    name = f"{options.model}_shuffled" if recipe.shuffled else options.model
    print(f"{name}: accuracy on {options.held_out} held-out pictures {score:.2%}")
    if recipe.shuffled:
        halves = {key: array.astype(np.float16) for key, array in state_dict(model).items()}
        save_file(halves, options.folder / f"{name}.safetensors")
    else:
        save_weights(model, options.folder / name)
    report = {
        "model": "convnext_tiny",
        "config": {"num_classes": len(CLASSES)}
        | config
        | {"dcls": config["dcls"] and dataclasses.asdict(config["dcls"])},
        "recipe": dataclasses.asdict(recipe),
        "held_out": {"pictures": options.held_out, "accuracy": score},
        "history": history,
    }
    (options.folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

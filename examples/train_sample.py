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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from draw_sample import CLASSES, SIZE, draw, encode_example
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from orbax.checkpoint import v1 as ocp
from PIL import Image
from safetensors.numpy import save_file

from dcls_jax import DclsConfig, Positions
from dcls_jax.eval import clickme, write_records
from dcls_jax.models import Backbone, Transform, create_model, save_weights, state_dict
from dcls_jax.training import clamp_positions, optimiser

Batch = tuple[np.ndarray, np.ndarray]  # images (B, side, side, 3), labels (B,); also one of each
State = dict[str, Any]  # "params", "optimiser": pytrees of arrays

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

    steps: int = 1600
    small_steps: int = 900
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 30
    weight_decay: float = 0.05
    position_spread: float = 5.0
    save_every: int = 50
    seed: int = 0
    shuffled: int = 0


# ----- Data ----------------------------------------------------------------------------------------------------------


def training_batches(recipe: Recipe, start: int) -> Iterator[Batch]:
    """A run's batches from step `start` on, small pictures first, drawn by two threads while the model computes."""
    labels = shuffled_labels(recipe.shuffled, seed=recipe.seed)

    def drawn(index: int, size: int) -> Batch:
        picture = draw("train", index, seed=recipe.seed, size=size)
        edge = (size - min(size, CROP)) // 2
        return picture.image[edge : size - edge, edge : size - edge], np.array(picture.label)

    known = cache(drawn)  # pictures that come again are drawn once

    def load(index: int) -> Batch:
        size = SMALL if index < recipe.small_steps * recipe.batch_size else SIZE
        if not len(labels):
            return drawn(index, size)
        number = index % len(labels)
        return known(number, size)[0], labels[number]

    pictures = grain.MapDataset.range(start * recipe.batch_size, recipe.steps * recipe.batch_size)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(pictures.map(load).batch(recipe.batch_size).to_iter_dataset(options))


def shuffled_labels(count: int, *, seed: int) -> np.ndarray:
    """The labels of the first pictures in another order, (count,)."""
    return np.random.default_rng(seed).permutation(np.arange(count) % len(CLASSES))


def accuracy(model: Backbone, records: Path | list[Path], batch_size: int = 32) -> float:
    """The share of pictures in ClickMe records that a model names, shown to it as `clickme.evaluate` shows them."""
    graphdef, params = nnx.split(model)
    classify = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images).argmax(-1))

    def load(sample: clickme.Sample) -> Batch:
        return model.transform(Image.fromarray(sample.image.astype(np.uint8))), np.array(sample.label)

    correct = [
        np.asarray(classify(params, images)) == labels
        for images, labels in clickme.load(records).map(load).batch(batch_size)
    ]
    return float(np.concatenate(correct).mean())


# ----- Training ------------------------------------------------------------------------------------------------------


def normalise(images: ArrayLike, transform: Transform) -> Array:
    return (jnp.asarray(images, jnp.float32) / 255 - jnp.array(transform.mean)) / jnp.array(transform.std)


def spread_positions(model: nnx.Module, factor: float) -> None:
    """Draws the elements of every DCLS kernel apart, in place, up to the border of its grid.

    They start within a cell of the centre, where a DCLS sees little more than one pixel; a short run has no time for
    them to part by themselves.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Positions):
            module.P[...] *= factor
            module.clamp()


def make_step(
    graphdef: nnx.GraphDef, transform: Transform, optimise: optax.GradientTransformation
) -> Callable[[State, ArrayLike, ArrayLike], tuple[State, dict[str, Array]]]:
    """The jitted training step; it takes over the memory of the state it is given."""

    def loss_of(params: nnx.State, images: Array, labels: ArrayLike) -> tuple[Array, Array]:
        logits = nnx.merge(graphdef, params)(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits.argmax(-1) == labels).mean()

    def step(state: State, images: ArrayLike, labels: ArrayLike) -> tuple[State, dict[str, Array]]:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, accuracy), grads = grad(state["params"], normalise(images, transform), labels)
        updates, optimiser_state = optimise.update(grads, state["optimiser"], state["params"])
        model = nnx.merge(graphdef, optax.apply_updates(state["params"], updates))
        clamp_positions(model)
        return {"params": nnx.state(model), "optimiser": optimiser_state}, {"loss": loss, "accuracy": accuracy}

    return jax.jit(step, donate_argnums=0)


def train(name: str, config: dict[str, Any], recipe: Recipe, folder: Path) -> tuple[Backbone, list[dict[str, float]]]:
    """Trains a small ConvNeXt, or goes on with it from the last checkpoint in `folder`.

    Returns the trained model and its history: loss, accuracy and images per second between checkpoints.
    """
    rngs = nnx.Rngs(recipe.seed)
    model = create_model("convnext_tiny", num_classes=len(CLASSES), rngs=rngs, **config)
    spread_positions(model, recipe.position_spread)
    graphdef, params = nnx.split(model)
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, recipe.warmup_steps, recipe.steps)
    optimise = optax.chain(optax.clip_by_global_norm(1.0), optimiser(rate, recipe.weight_decay))
    step = make_step(graphdef, model.transform, optimise)
    # Through numpy, which knows no weak types: with them the step would compile twice.
    state = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf)), {"params": params, "optimiser": optimise.init(params)}
    )

    keep = ocp.training.preservation_policies.LatestN(2)
    with ocp.training.Checkpointer(folder.absolute(), preservation_policy=keep) as checkpointer:
        done, history = 0, []
        if latest := checkpointer.latest:
            done, history = latest.step, checkpointer.metadata(latest.step).custom_metadata["history"]
            state = checkpointer.load(done, state)
            print(f"{name}: goes on from step {done}")
        metrics: list[dict[str, Array]] = []
        start = time.perf_counter()
        for images, labels in training_batches(recipe, done):
            state, metric = step(state, images, labels)
            metrics.append(metric)
            done += 1
            if done % recipe.save_every and done < recipe.steps:
                continue
            loss, correct = (float(np.mean([metric[key] for metric in metrics])) for key in ("loss", "accuracy"))
            speed = len(metrics) * recipe.batch_size / (time.perf_counter() - start)
            history.append({"step": done, "loss": loss, "accuracy": correct, "images_per_second": speed})
            checkpointer.save(done, state, force=True, custom_metadata={"history": history})
            minutes = (recipe.steps - done) * recipe.batch_size / speed / 60
            print(
                f"{name}: step {done} of {recipe.steps}, loss {loss:.3f}, accuracy {correct:.3f}, "
                f"{speed:.0f} images/s, {minutes:.1f} min left",
                flush=True,
            )
            metrics, start = [], time.perf_counter()
    return nnx.merge(graphdef, state["params"]), history


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
        "config": config | {"dcls": config["dcls"] and dataclasses.asdict(config["dcls"])},
        "recipe": dataclasses.asdict(recipe),
        "held_out": {"pictures": options.held_out, "accuracy": score},
        "history": history,
    }
    (options.folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Training and fine-tuning on pictures: recipe, data, model and loop put together, in one folder.

The folder has `run.json`, what is trained and how; `log.csv`; `checkpoints/`, from which the same call goes on;
`weights/` and `best/`, the model at the end and where evaluation found it best, each with its description beside it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
from flax import nnx
from jax import Array

from dcls_jax.cam import group_cam
from dcls_jax.eval import accuracy
from dcls_jax.eval.data.learning import Data
from dcls_jax.eval.metric import Settings
from dcls_jax.eval.progress import progress_of
from dcls_jax.eval.results import ResultsFolder, check_writable
from dcls_jax.models import Backbone, save_model
from dcls_jax.training import Recipe, hide_unexplained, layers_in_order
from dcls_jax.training.augmentation import Augmentation
from dcls_jax.training.data import Batch, Reading, Rows, batches, steps_per_epoch
from dcls_jax.training.loop import Plan, Report, train
from dcls_jax.training.rand_augment import RandAugment
from dcls_jax.training.step import (
    Prepare,
    State,
    data_mesh,
    initial_state,
    make_step,
    model_of,
    parts_of,
)

_STATES = 4  # arrays that training keeps of each parameter, at most: itself, two moments, an average


@dataclass(frozen=True)
class Options:
    """How a run goes, whatever is trained.

    out: its folder. accumulate: parts of a batch, one after the other, where a whole one does not fit the memory.
    workers: processes that read and augment; 0 for threads of this one. save_every: steps between checkpoints, 0 for
    an epoch; log_every: between rows of the log. keep: how many last checkpoints stay. tensorboard: also write curves.
    frozen, layer_decay: as `dcls_jax.training.optimiser` has them. group_cam: the share of each batch of which what a
    picture's Group-CAM leaves out is blurred (`hide_unexplained`). weights_every: epochs after which the weights are
    kept too, in epochs/, as those of the beginning are; 0 for never.
    """

    out: Path
    accumulate: int = 1
    workers: int = 0
    save_every: int = 0
    log_every: int = 50
    keep: int = 2
    tensorboard: bool = False
    frozen: tuple[str, ...] = ()
    layer_decay: float = 1.0
    group_cam: float = 0.0
    weights_every: int = 0
    progress: bool = True


def fit(model: Backbone, name: str, recipe: Recipe, data: Data, options: Options, **origin: Any) -> Backbone:
    """The model trained by a recipe, or gone on with where a run like this one in the folder stopped.

    model: freshly made, with as many outputs as there are classes; `name` is that of `create_model`. With an average of
    parameters (`recipe.ema`) it is what is evaluated, kept and returned; in evaluation mode.
    origin: JSON values that also tell this run from others, such as which weights it begins with.
    Raises, before any long work, ValueError for what does not fit together, ResultsError for a folder with another run
    or one at work there, OSError where nothing can be written; later DivergedError, and RecordError for a picture that
    cannot be read.
    """
    steps, mesh = steps_of(data, recipe.batch_size, options.accumulate), data_mesh()
    rows = Rows(recipe.batch_size, options.accumulate, jax.process_count(), jax.process_index())
    plan = Plan(
        steps=recipe.total_epochs * steps,
        steps_per_epoch=steps,
        batch_size=recipe.batch_size,
        log_every=options.log_every,
        save_every=options.save_every or steps,
        evaluate_every=steps if data.validation is not None else 0,
    )
    augment = augmentation_of(recipe, model)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    check_writable(options.out, (_STATES * (options.keep + 1) + 2) * size)
    optimise = recipe.optimiser(
        steps, layer_decay=options.layer_decay, layer_of=layers_in_order(model.chain), frozen=options.frozen
    )
    parts = parts_of(model, options.frozen)
    jax.eval_shape(optimise.init, parts.params)  # whatever is wrong with `frozen` is said now
    transform = model.transform
    step = make_step(
        parts,
        optimise,
        recipe,
        num_classes=len(data.classes),
        mean=transform.mean,
        std=transform.std,
        steps_per_epoch=steps,
        prepare=_hidden(options.group_cam) if options.group_cam else None,
        mesh=mesh,
    )
    notes = {"classes": list(data.classes)}

    def begin() -> State:
        return initial_state(parts, optimise, average=recipe.ema is not None)

    def trained(state: State) -> Backbone:
        return cast(Backbone, model_of(parts, state))

    def evaluate(state: State) -> Mapping[str, float]:
        folder = options.out / "evaluations" / str(int(state["step"]))
        return _evaluated(trained(state), data, folder if jax.process_count() > 1 else None)

    def keep_each(state: State) -> None:
        epoch, rest = divmod(int(state["step"]), steps)
        if options.weights_every and not rest and epoch % options.weights_every == 0:
            save_model(trained(state), name, options.out / "epochs" / f"{epoch:04}", **notes)

    identity = _identity(model, name, recipe, data, options, origin)
    with ResultsFolder(options.out, identity):
        keep_each(begin())
        state = train(
            step,
            begin(),  # which nobody else holds, as it fills the devices' memory
            partial(_read, data, augment, rows, recipe.seed, Reading(workers=options.workers)),
            plan,
            options.out,
            mesh=mesh,
            learning_rate=recipe.schedule(steps),
            evaluate=evaluate if data.validation is not None else None,
            keep_each=keep_each,
            keep_best=lambda state: save_model(trained(state), name, options.out / "best", **notes),
            progress=partial(_progress, recipe.batch_size, options.progress),
            tensorboard=options.tensorboard,
            keep=options.keep,
        )
        result = trained(state)
        save_model(result, name, options.out / "weights", **notes)
    return result


def augmentation_of(recipe: Recipe, model: Backbone) -> Augmentation:
    """What a recipe does to a training picture of a model, which is as large as the model's transform makes it."""
    red, green, blue = (min(255, round(255 * mean)) for mean in model.transform.mean)  # timm's
    return Augmentation(
        size=model.transform.crop,
        interpolation=recipe.interpolation,
        rand_augment=RandAugment.parse(recipe.rand_augment) if recipe.rand_augment else None,
        colour_jitter=recipe.colour_jitter,
        erasing=recipe.erasing,
        fill=(red, green, blue),
    )


def steps_of(data: Data, batch_size: int, accumulate: int = 1) -> int:
    """Steps of an epoch. Raises ValueError for a batch of more pictures, or one that devices cannot share."""
    devices = jax.device_count()
    if accumulate < 1 or batch_size % (accumulate * devices):
        raise ValueError(
            f"batch_size (={batch_size}) must be a multiple of accumulate (={accumulate}) x {devices} devices"
        )
    return steps_per_epoch(data.train, batch_size)


def _read(
    data: Data, augment: Augmentation, rows: Rows, seed: int, reading: Reading, start: int, stop: int
) -> Iterator[Batch]:
    return batches(data.train, augment, rows, seed=seed, start=start, stop=stop, reading=reading)


@contextmanager
def _progress(batch_size: int, shown: bool, steps: int) -> Iterator[Report]:
    with progress_of(steps * batch_size, shown and jax.process_index() == 0, "images") as advance:
        yield lambda count, note: advance(count * batch_size, note)


def _evaluated(model: Backbone, data: Data, folder: Path | None) -> dict[str, float]:
    """The shares of validation pictures that the model names at once and, of six classes or more, in five guesses."""
    local = jax.local_device_count()
    settings = Settings(batch_size=-(-32 // local) * local, out=folder, progress=False)
    k = (1, 5) if len(data.classes) > 5 else (1,)
    found = accuracy.evaluate(model, cast(Any, data.validation), settings, k=k).values
    return {f"top{number}": found[f"top_{number}"] for number in k}


def _hidden(share: float) -> Prepare:
    """Group-CAM of the labels, as augmentation."""

    def prepare(model: nnx.Module, images: Array, labels: Array, key: Array) -> Array:
        return hide_unexplained(images, labels, partial(group_cam, cast(Backbone, model)), share=share)

    return prepare


def _identity(
    model: Backbone, name: str, recipe: Recipe, data: Data, options: Options, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """What tells a run from others, as JSON values."""
    validation = None if data.validation is None else data.validation.identity()
    return {
        "model": name,
        "config": _json(vars(model)["config"]),
        "recipe": {key: it for key, it in _json(recipe).items() if key not in _OF_THE_MODEL},
        "data": {"train": data.train.identity(), "validation": validation, "classes": len(data.classes)},
        "options": {key: _json(getattr(options, key)) for key in _DECIDING},
        **origin,
    }


_OF_THE_MODEL = "model", "dcls", "config", "unpublished"  # of a recipe
_DECIDING = "accumulate", "save_every", "log_every", "frozen", "layer_decay", "group_cam"  # beside recipe and data


def _json(value: Any) -> Any:
    """Settings as JSON values: dataclasses and mappings as objects, what is no number or text by its name."""
    if is_dataclass(value):
        return {field.name: _json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _json(it) for key, it in value.items()}
    if isinstance(value, tuple | list):
        return [_json(it) for it in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)

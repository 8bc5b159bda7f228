"""What a training run begins with: a model with random weights or those of a checkpoint, and its recipe."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from dcls_jax.models import Backbone, Transform, create_model
from dcls_jax.models.create import variant_of
from dcls_jax.models.described import described
from dcls_jax.models.folders import place_of
from dcls_jax.training import Recipe


def untrained(recipe: Recipe, num_classes: int, *, dtype: DTypeLike | None = None) -> Backbone:
    """The model of a recipe with random weights of its seed."""
    return create_model(
        recipe.model,
        dcls=recipe.dcls or False,
        num_classes=num_classes,
        transform=transform_of(recipe, variant_of(recipe.model).config.transform),
        drop_path_rate=recipe.drop_path_rate,
        dtype=dtype,
        rngs=nnx.Rngs(recipe.seed),
        **recipe.config,
    )


# Not published anywhere: usual for ConvNeXt and its like on data sets of thousands of pictures.
FINE_TUNING = Recipe(
    model="",
    dcls=None,
    epochs=20,
    warmup_epochs=1,
    batch_size=32,
    learning_rate=5e-4,
    minimum=1e-6,
    weight_decay=0.05,
    drop_path_rate=0.1,
    repulsion_from=0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    smoothing=0.1,
)


def for_fine_tuning(
    checkpoint: str,
    num_classes: int,
    *,
    model: str | None = None,
    dcls: bool = False,
    dtype: DTypeLike | None = None,
    new_head: bool = True,
    changes: Mapping[str, Any],
) -> tuple[Backbone, str, Recipe]:
    """A checkpoint's model, with a new head of random weights or its own, its name, and FINE_TUNING with `changes`.

    checkpoint: what `create_model` takes. model, dcls: what it is of, where no description beside it says so.
    new_head: otherwise the checkpoint is loaded as a whole, and must be of so many classes.
    Raises FileNotFoundError where nothing is, CheckpointError for weights that do not fit, and ValueError where nothing
    says what they are of, or the description says something else.
    """
    if checkpoint != "published" and not place_of(checkpoint).exists():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}")
    found = None if checkpoint == "published" else described(checkpoint)
    name = found.name if found else model
    if name is None:
        raise ValueError(f"nothing beside {checkpoint} says what it is of; say so by --model, and --dcls if it has it")
    if model not in (None, name):
        raise ValueError(f"model (={model!r}) is not what the description beside {checkpoint} says, {name!r}")
    config: dict[str, Any] = dict(found.config) if found else {"dcls": dcls}
    if not new_head and config.get("num_classes", num_classes) != num_classes:
        raise ValueError(f"the data have {num_classes} classes, expected the checkpoint's {config['num_classes']}")
    usual: Transform = config.pop("transform", variant_of(name).config.transform)
    warm = max(0, min(FINE_TUNING.warmup_epochs, changes.get("epochs", FINE_TUNING.epochs) - 1))
    seen = {"model": name, "size": usual.crop, "crop": usual.crop / usual.resize}
    recipe = with_fields(FINE_TUNING, {"warmup_epochs": warm, **seen, **changes})
    config |= {"num_classes": num_classes, "drop_path_rate": recipe.drop_path_rate}
    built = create_model(
        name,
        weights=checkpoint,
        new_head=new_head,
        transform=transform_of(recipe, usual),
        dtype=dtype,
        rngs=nnx.Rngs(recipe.seed),
        **config,
    )
    return built, name, replace(recipe, dcls=vars(built)["config"].dcls)


def body(model: Backbone) -> list[str]:
    """Patterns, for `Options.frozen`, of all of a model but its head."""
    return sorted({str(path[0]) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))} - {"fc"})


def with_fields(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of some fields. Raises ValueError for a field that there is not."""
    known = [field.name for field in fields(recipe)]
    for name in values:
        if name not in known:
            raise ValueError(f"recipes have no field {name!r}; their fields are {', '.join(known)}")
    return replace(recipe, **values)


def transform_of(recipe: Recipe, usual: Transform) -> Transform:
    """What the model is tested with: the usual, or at the recipe's size the share that it keeps."""
    if recipe.size == usual.crop:
        return usual
    return replace(usual, resize=round(recipe.size / recipe.crop), crop=recipe.size)


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe in so many epochs: warm-up, cool-down and the repulsive loss's beginning in proportion."""
    share = epochs / recipe.epochs
    start = recipe.repulsion_from
    return replace(
        recipe,
        epochs=epochs,
        warmup_epochs=min(round(share * recipe.warmup_epochs), epochs - 1),
        cooldown_epochs=round(share * recipe.cooldown_epochs),
        repulsion_from=None if start is None else round(share * start),
    )

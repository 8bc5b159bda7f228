"""The published recipes of models with DCLS, to the last constant that is known, and whose the others are.

Sources: ConvNeXt-dcls, github.com/K-H-Ismail/ConvNeXt-dcls (main.py, engine.py, optim_factory.py, TRAINING.md);
MetaFormer, github.com/sail-sg/metaformer; FastViT, github.com/apple/ml-fastvit; ResNet50 with DCLS,
github.com/K-H-Ismail/pytorch-image-models. How MetaFormer and FastViT were trained with DCLS was not published: here
they have their own recipes with the rules of ConvNeXt-dcls for positions. `Recipe.unpublished` says so field by field.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.layers import DclsConfig
from dcls_jax.training.optimisers import RULES, Rule, optimiser
from dcls_jax.training.paths import Path
from dcls_jax.training.schedules import cosine_schedule, epoch_schedule

Loss = Literal["softmax", "binary"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, as numbers; what a run needs beside its data.

    model, dcls: what is trained, by its name, and the DCLS of it; config: what else of the model the recipe sets.
    epochs: of the schedule; cooldown_epochs follow at the minimum. batch_size: images of a step, of all devices.
    rule, learning_rate, weight_decay, position_factor: as `optimiser` has them. minimum, warmup_start, warmup_epochs:
    of the schedule. per: whether the rate changes each "step" (`cosine_schedule`) or "epoch" (`epoch_schedule`).
    repulsion_from: the epoch, counted from 0, from which on the square of `repulsive_loss` is added to the loss.
    drop_path_rate: of the last block. loss: "softmax", cross-entropy, or "binary", one for each class.
    smoothing, mixup_alpha, cutmix_alpha, switch: as `random_mix` has them.
    rand_augment: timm's name for it; colour_jitter: unused beside RandAugment. erasing: the probability.
    ema: the decay of the average of parameters, None for none; what is published of a model with one is the average.
    size, interpolation: of the training images, pixels; crop: the share of a test image's side that is kept.
    seed: of the original runs. unpublished: of the fields that no source of this model with DCLS gives, whose they are.
    Raises ValueError for a value out of its range.
    """

    model: str
    dcls: DclsConfig | None
    epochs: int
    warmup_epochs: int
    batch_size: int
    learning_rate: float
    minimum: float
    weight_decay: float
    drop_path_rate: float
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    cooldown_epochs: int = 0
    warmup_start: float = 0.0
    per: Literal["step", "epoch"] = "step"
    rule: Rule = "adamw"
    position_factor: float = 5.0
    repulsion_from: int | None = 21  # ConvNeXt-dcls: `if epoch > 20`
    loss: Loss = "softmax"
    smoothing: float = 0.1
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    colour_jitter: float = 0.4
    erasing: float = 0.25
    ema: float | None = None
    size: int = 224
    interpolation: Literal["bicubic", "random"] = "bicubic"
    crop: float = 0.875
    seed: int = 0
    unpublished: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name, known in {"rule": RULES, "per": ("step", "epoch"), "loss": get_args(Loss)}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} (={getattr(self, name)!r}) must be one of {', '.join(known)}")
        for name, least in {"epochs": 1, "batch_size": 1, "size": 1, "warmup_epochs": 0, "cooldown_epochs": 0}.items():
            if not isinstance(value := getattr(self, name), int) or value < least:
                raise ValueError(f"{name} (={value!r}) must be a whole number, at least {least}")
        for name in ("learning_rate", "minimum", "warmup_start", "weight_decay", "mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} (={getattr(self, name)!r}) must not be negative")
        for name in ("drop_path_rate", "smoothing", "switch", "erasing", "crop", "ema"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} (={value!r}) must lie between 0 and 1")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs (={self.warmup_epochs}) must be below epochs (={self.epochs})")

    @property
    def total_epochs(self) -> int:
        """With the cool-down."""
        return self.epochs + self.cooldown_epochs

    def for_batches_of(self, batch_size: int) -> "Recipe":
        """The recipe for another batch size, learning rates in proportion to it (arXiv 1706.02677), as is usual."""
        share = batch_size / self.batch_size
        rates = {name: share * getattr(self, name) for name in ("learning_rate", "minimum", "warmup_start")}
        return replace(self, batch_size=batch_size, **rates)

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """The learning rate of weights by step; that of positions is `position_factor` times it."""
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch (={steps_per_epoch}) must be at least 1")
        if self.per == "step":
            return cosine_schedule(
                self.learning_rate,
                steps=self.epochs * steps_per_epoch,
                warmup_steps=self.warmup_epochs * steps_per_epoch,
                minimum=self.minimum,
                warmup_start=self.warmup_start,
            )
        return epoch_schedule(
            self.learning_rate,
            epochs=self.epochs,
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=self.warmup_epochs,
            minimum=self.minimum,
            warmup_start=self.warmup_start,
        )

    def optimiser(
        self,
        steps_per_epoch: int,
        *,
        layer_decay: float = 1.0,
        layer_of: Callable[[Path], int] | None = None,
        frozen: Sequence[str] = (),
    ) -> optax.GradientTransformation:
        """`dcls_jax.training.optimiser` with the recipe's schedule and numbers; the options are for fine-tuning."""
        return optimiser(
            self.schedule(steps_per_epoch),
            self.weight_decay,
            self.position_factor,
            rule=self.rule,
            layer_decay=layer_decay,
            layer_of=layer_of,
            frozen=frozen,
        )

    def repulsion(self, step: ArrayLike, steps_per_epoch: int) -> Array:
        """What the square of `repulsive_loss` is multiplied by at a step: 0, then 1; float32."""
        if self.repulsion_from is None:
            return jnp.zeros((), jnp.float32)
        return (jnp.asarray(step) >= self.repulsion_from * steps_per_epoch).astype(jnp.float32)

    def fit(self, logits: Array, labels: Array) -> Array:
        """The recipe's loss without the repulsive one, a scalar: logits and soft labels (B, num_classes)."""
        if self.loss == "binary":
            return optax.sigmoid_binary_cross_entropy(logits, labels).mean()
        return optax.softmax_cross_entropy(logits, labels).mean()


def recipe(name: str, **changes: Any) -> Recipe:
    """A published recipe by its name, with some of its fields changed.

    Raises ValueError for an unknown name, an unknown field, or a value out of its range.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe (={name!r}) must be one of {', '.join(RECIPES)}")
    known = [each.name for each in fields(Recipe)]
    for change in changes:
        if change not in known:
            raise ValueError(f"recipe {name!r} has no field {change!r}; its fields are {', '.join(known)}")
    return replace(RECIPES[name], **changes)


def _convnext(size: str, count: int, drop_path: float, **unpublished: str) -> Recipe:
    return Recipe(
        model=f"convnext_{size}",
        dcls=DclsConfig(count, 17, "v0"),
        epochs=300,
        warmup_epochs=20,
        batch_size=4096,
        learning_rate=4e-3,
        minimum=1e-6,
        weight_decay=0.05,
        drop_path_rate=drop_path,
        config=MappingProxyType({"layer_scale_init_value": 1e-6}),
        ema=0.9999,
        unpublished=MappingProxyType(unpublished),
    )


_RULES_OF_CONVNEXT = {"position_factor": "ConvNeXt-dcls", "repulsion_from": "ConvNeXt-dcls"}


def _metaformer(model: str, count: int, **changes: Any) -> Recipe:
    ours = "the model's own, without DCLS"
    taken = ("epochs", "batch_size", "learning_rate", "rule", "weight_decay", "drop_path_rate")
    return Recipe(
        model=model,
        dcls=DclsConfig(count, 17, "v1"),
        epochs=300,
        cooldown_epochs=10,
        warmup_epochs=20,
        warmup_start=1e-6,
        batch_size=4096,
        minimum=1e-5,
        per="epoch",
        weight_decay=0.05,
        interpolation="random",
        crop=1.0,
        seed=42,
        unpublished=MappingProxyType(dict.fromkeys(taken, ours) | _RULES_OF_CONVNEXT),
        **changes,
    )


def _fastvit(model: str, drop_path: float) -> Recipe:
    ours = "the model's own, without DCLS"
    taken = ("epochs", "batch_size", "learning_rate", "rule", "weight_decay", "drop_path_rate", "mixup_alpha", "ema")
    return Recipe(
        model=model,
        dcls=DclsConfig(34, 17, "v1"),
        epochs=300,
        cooldown_epochs=10,
        warmup_epochs=5,
        warmup_start=1e-6,
        batch_size=1024,
        learning_rate=1e-3,
        minimum=1e-5,
        per="epoch",
        weight_decay=0.05,
        drop_path_rate=drop_path,
        mixup_alpha=0.2,
        ema=0.9995,
        size=256,
        crop=0.9,
        seed=42,
        unpublished=MappingProxyType(dict.fromkeys(taken, ours) | _RULES_OF_CONVNEXT),
    )


def _resnet50() -> Recipe:
    """Published are the kernel (7x7, 5 elements), and that the checkpoint is an average of weights: no more.

    All else is that of the baseline with which the study compares, timm's resnet50.a1_in1k (arXiv 2110.00476), which is
    not claimed to be how the model with DCLS was trained. A1 also repeats each picture three times in a batch
    (repeated augmentation), and counts labels above 0.2 as 1.
    """
    baseline: dict[str, Any] = {
        "epochs": 600,
        "warmup_epochs": 5,
        "batch_size": 2048,
        "rule": "lamb",
        "learning_rate": 5e-3,
        "minimum": 1e-6,
        "warmup_start": 1e-4,
        "weight_decay": 0.01,
        "per": "epoch",
        "drop_path_rate": 0.05,
        "loss": "binary",
        "smoothing": 0.1,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "rand_augment": "rand-m7-mstd0.5-inc1",
        "erasing": 0.0,
        "crop": 0.95,
    }
    whose = dict.fromkeys(baseline, "the baseline's, timm's resnet50.a1_in1k") | {
        "position_factor": "the same authors' ConvNeXt-dcls",
        "repulsion_from": "the same authors' ConvNeXt-dcls; an option of their code, --use_loss_rep",
        "ema": "a usual one; published is only that there was an average",
    }
    return Recipe(
        model="resnet50", dcls=DclsConfig(5, 7, "v0"), ema=0.9999, unpublished=MappingProxyType(whose), **baseline
    )


_DROP_PATH = "ConvNeXt's own, without DCLS"

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "convnext_dcls_tiny": _convnext("tiny", 34, 0.1),
        "convnext_dcls_small": _convnext("small", 40, 0.4, drop_path_rate=_DROP_PATH),
        "convnext_dcls_base": _convnext("base", 40, 0.5, drop_path_rate=_DROP_PATH),
        "caformer_s18_dcls": _metaformer("caformer_s18", 34, rule="lamb", learning_rate=8e-3, drop_path_rate=0.15),
        "convformer_s18_dcls": _metaformer("convformer_s18", 40, learning_rate=4e-3, drop_path_rate=0.2),
        "fastvit_sa24_dcls": _fastvit("fastvit_sa24", 0.1),
        "fastvit_sa36_dcls": _fastvit("fastvit_sa36", 0.2),
        "resnet50_dcls": _resnet50(),
    }
)

"""Training with learnable spacings: optimisers, schedules, losses, mixed batches, replaced convolutions, recipes.

It knows no model: parameter trees are `nnx.state(model, nnx.Param)`, and layers are called by their path in the model.
"""

from dcls_jax.training.averages import ema
from dcls_jax.training.group_cam import hide_unexplained
from dcls_jax.training.mixing import cutmix, cutmix_box, mixup, random_mix
from dcls_jax.training.optimisers import layers_in_order, optimiser, position_labels
from dcls_jax.training.positions import clamp_positions, repulsive_loss
from dcls_jax.training.recipes import RECIPES, Recipe, recipe
from dcls_jax.training.replacement import replace_convolutions, replaced
from dcls_jax.training.schedules import cosine_schedule, epoch_schedule

__all__ = [
    "RECIPES",
    "Recipe",
    "clamp_positions",
    "cosine_schedule",
    "cutmix",
    "cutmix_box",
    "ema",
    "epoch_schedule",
    "hide_unexplained",
    "layers_in_order",
    "mixup",
    "optimiser",
    "position_labels",
    "random_mix",
    "recipe",
    "replace_convolutions",
    "replaced",
    "repulsive_loss",
]

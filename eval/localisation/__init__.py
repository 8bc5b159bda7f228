"""Whether a map is where the object is: the pointing game, energy, boxes and masks.

One map (h, w) of any size, or a batch (B, h, w), larger meaning more important. What fits no picture of a data set (an
empty mask, a map that is not finite) is an error in the functions of arrays, and a status in the protocols.
"""

from dcls_jax.eval.boxes import box_mask, box_overlaps, scaled_boxes
from dcls_jax.eval.data.regions import Region, box_regions, cropped, mask_regions
from dcls_jax.eval.localisation.evaluation import PRESETS, Annotated, ByClass, Preset, check_choice, evaluate
from dcls_jax.eval.localisation.pixels import average_precision, pixel_average_precision, pixel_counts
from dcls_jax.eval.localisation.points import energy_inside, pointing_hit, top_n_inside, top_overlap
from dcls_jax.eval.localisation.protocols import (
    INSIDE_PRESETS,
    MASK_PRESETS,
    POINTING_PRESETS,
    ClassMeans,
    InsidePreset,
    MaskPreset,
    PointingPreset,
    class_means,
    inside,
    on_mask,
    pointing,
)
from dcls_jax.eval.localisation.wsol import (
    BOX_PRESETS,
    BoxPreset,
    best_accuracy,
    best_overlaps,
    box_accuracy,
    box_scores,
    boxes,
)

__all__ = [
    "BOX_PRESETS",
    "INSIDE_PRESETS",
    "MASK_PRESETS",
    "POINTING_PRESETS",
    "PRESETS",
    "Annotated",
    "BoxPreset",
    "ByClass",
    "ClassMeans",
    "InsidePreset",
    "MaskPreset",
    "PointingPreset",
    "Preset",
    "Region",
    "average_precision",
    "best_accuracy",
    "best_overlaps",
    "box_accuracy",
    "box_mask",
    "box_overlaps",
    "box_regions",
    "box_scores",
    "boxes",
    "check_choice",
    "class_means",
    "cropped",
    "energy_inside",
    "evaluate",
    "inside",
    "mask_regions",
    "on_mask",
    "pixel_average_precision",
    "pixel_counts",
    "pointing",
    "pointing_hit",
    "scaled_boxes",
    "top_n_inside",
    "top_overlap",
]

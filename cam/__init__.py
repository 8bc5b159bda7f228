"""Class activation maps of any model that splits into features and head."""

from dcls_jax.cam.explain import METHODS, explain, study_maps
from dcls_jax.cam.gradient import Model, activations_and_gradients, grad_cam, threshold_grad_cam
from dcls_jax.cam.overlay import overlay, save_grid
from dcls_jax.cam.postprocess import normalise, postprocess, resize
from dcls_jax.cam.targets import Targets, scores

__all__ = [
    "METHODS",
    "Model",
    "Targets",
    "activations_and_gradients",
    "explain",
    "grad_cam",
    "normalise",
    "overlay",
    "postprocess",
    "resize",
    "save_grid",
    "scores",
    "study_maps",
    "threshold_grad_cam",
]

"""Every method by its name."""

from collections.abc import Callable
from typing import Any

from dcls_jax.cam import decomposition, fullgrad, gradient, grouping, guided, perturbation, pixels

METHODS: dict[str, Callable[..., Any]] = {
    method.__name__: method
    for method in (
        gradient.cam,
        gradient.grad_cam,
        gradient.hires_cam,
        gradient.elementwise,
        gradient.xgrad_cam,
        gradient.layer_cam,
        gradient.grad_cam_pp,
        gradient.threshold_grad_cam,
        gradient.integrated_grad_cam,
        gradient.smooth_grad_cam_pp,
        gradient.shapley_cam,
        gradient.finer_cam,
        gradient.random_cam,
        fullgrad.full_grad,
        grouping.group_cam,
        perturbation.score_cam,
        perturbation.ss_cam,
        perturbation.is_cam,
        perturbation.ablation_cam,
        decomposition.eigen_cam,
        decomposition.eigen_grad_cam,
        decomposition.seg_eigen_cam,
        decomposition.kpca_cam,
        decomposition.fem,
        guided.guided_backprop,
        guided.guided_grad_cam,
        pixels.input_x_gradient,
        pixels.integrated_gradients,
        pixels.smooth_grad,
        pixels.occlusion,
        pixels.rise,
    )
}

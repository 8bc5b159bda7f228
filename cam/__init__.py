"""Class activation maps of any model that splits into features and head, and of any Flax module."""
# ruff: noqa: I001  (in groups)

# The entrance, and what becomes of its maps.
from dcls_jax.cam.checks import (
    DeadMapWarning as DeadMapWarning,
)
from dcls_jax.cam.explanation import (
    Method as Method,
    explain as explain,
    explain_all as explain_all,
    options_of as options_of,
)
from dcls_jax.cam.maps import (
    combine_layers as combine_layers,
    dead_maps as dead_maps,
    normalise as normalise,
    postprocess as postprocess,
    resize as resize,
)

# What is explained: models, and scores of their outputs.
from dcls_jax.cam.model import (
    FunctionalModel as FunctionalModel,
    Model as Model,
    activations_and_gradients as activations_and_gradients,
    from_functions as from_functions,
)
from dcls_jax.cam.modules import (
    from_module as from_module,
    tokens_to_grid as tokens_to_grid,
)
from dcls_jax.cam.targets import (
    Binary as Binary,
    Boxes as Boxes,
    Contrast as Contrast,
    Logit as Logit,
    LogProbability as LogProbability,
    Negative as Negative,
    Probability as Probability,
    Region as Region,
    Rest as Rest,
    Sigmoid as Sigmoid,
    Similarity as Similarity,
    Targets as Targets,
    nearest_classes as nearest_classes,
    regression as regression,
    scores as scores,
)

# Methods, by what they need: gradients to activations,
from dcls_jax.cam.methods import (
    METHODS as METHODS,
)
from dcls_jax.cam.gradient import (
    cam as cam,
    channel_sum as channel_sum,
    elementwise as elementwise,
    finer_cam as finer_cam,
    grad_cam as grad_cam,
    grad_cam_pp as grad_cam_pp,
    hires_cam as hires_cam,
    integrated_grad_cam as integrated_grad_cam,
    layer_cam as layer_cam,
    random_cam as random_cam,
    shapley_cam as shapley_cam,
    smooth_grad_cam_pp as smooth_grad_cam_pp,
    threshold_grad_cam as threshold_grad_cam,
    xgrad_cam as xgrad_cam,
)

# activations alone, or their principal components,
from dcls_jax.cam.decomposition import (
    Factors as Factors,
    deep_feature_factorisation as deep_feature_factorisation,
    eigen_cam as eigen_cam,
    eigen_grad_cam as eigen_grad_cam,
    eigen_smooth as eigen_smooth,
    fem as fem,
    kpca_cam as kpca_cam,
    seg_eigen_cam as seg_eigen_cam,
)

# scores of masked images and activations,
from dcls_jax.cam.grouping import (
    GROUP_CONVENTIONS as GROUP_CONVENTIONS,
    GroupConvention as GroupConvention,
    group_cam as group_cam,
)
from dcls_jax.cam.perturbation import (
    SCORE_CONVENTIONS as SCORE_CONVENTIONS,
    ScoreConvention as ScoreConvention,
    ablation_cam as ablation_cam,
    is_cam as is_cam,
    score_cam as score_cam,
    ss_cam as ss_cam,
)

# and gradients to pixels, plain, guided or of every bias.
from dcls_jax.cam.fullgrad import (
    full_grad as full_grad,
    full_gradients as full_gradients,
)
from dcls_jax.cam.guided import (
    guide as guide,
    guided_backprop as guided_backprop,
    guided_grad_cam as guided_grad_cam,
)
from dcls_jax.cam.pixels import (
    input_x_gradient as input_x_gradient,
    integrated_gradients as integrated_gradients,
    occlusion as occlusion,
    rise as rise,
    smooth_grad as smooth_grad,
)

# Pictures.
from dcls_jax.cam.grids import (
    Bar as Bar,
    Grid as Grid,
    save_grid as save_grid,
)
from dcls_jax.cam.pictures import (
    contour as contour,
    overlay as overlay,
    overlay_signed as overlay_signed,
)
from dcls_jax.cam.styles import (
    show_maps as show_maps,
)

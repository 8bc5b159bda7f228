"""Dilated convolution with learnable spacings, vision models, class activation maps and their evaluation, in JAX.

Images and activations are channels-last, (B, H, W, C), everywhere.
"""

from etils import epy

__version__ = "0.1.0"

with epy.lazy_api_imports(globals()):  # JAX and Flax are imported with the first of these that is used
    from dcls_jax.compilation import compiler_options
    from dcls_jax.depthwise import depthwise_conv
    from dcls_jax.freezing import freeze
    from dcls_jax.kernel import construct_kernel
    from dcls_jax.layers import Conv, Dcls1d, Dcls2d, Dcls2dK1d, Dcls3_1d, Dcls3d, DclsConfig, Positions

__all__ = [
    "Conv",
    "Dcls1d",
    "Dcls2d",
    "Dcls2dK1d",
    "Dcls3_1d",
    "Dcls3d",
    "DclsConfig",
    "Positions",
    "compiler_options",
    "construct_kernel",
    "depthwise_conv",
    "freeze",
]

"""The depthwise convolution of three of the families, standard or with DCLS, and the positions that a stage shares."""

import jax
from flax import nnx
from jax.nn.initializers import Initializer

from dcls_jax.layers import Conv, Dcls2d, DclsConfig, Positions
from dcls_jax.models.backbone import small_normal

_zeros = jax.nn.initializers.zeros


def depthwise(
    dim: int,
    dcls: DclsConfig | None,
    *,
    bias: bool,
    kernel_init: Initializer = small_normal,
    rngs: nnx.Rngs,
) -> Conv | Dcls2d:
    """7x7 depthwise convolution of `dim` channels, or a DCLS in its place, to be handed its positions at each call."""
    if dcls is None:
        return Conv(
            dim, dim, (7, 7), padding=3, groups=dim, bias=bias, kernel_init=kernel_init, bias_init=_zeros, rngs=rngs
        )
    return Dcls2d(
        dim,
        dim,
        dcls.kernel_count,
        padding=dcls.dilated_kernel_size // 2,
        dilated_kernel_size=dcls.dilated_kernel_size,
        groups=dim,
        bias=bias,
        version=dcls.version,
        shared_positions=True,
        weight_init=kernel_init,
        bias_init=_zeros,
        rngs=rngs,
    )


def shared_positions(dcls: DclsConfig | None, out_channels: int, in_per_group: int, rngs: nnx.Rngs) -> Positions | None:
    """Positions for all DCLS layers of a stage; None without DCLS."""
    if dcls is None:
        return None
    size = (dcls.dilated_kernel_size, dcls.dilated_kernel_size)
    return Positions((out_channels, in_per_group, dcls.kernel_count), size, dcls.version, rngs=rngs)

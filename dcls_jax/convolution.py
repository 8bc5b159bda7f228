"""Convolution in one, two and three dimensions, by the fastest lowering known for its shape."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from dcls_jax.depthwise import Precision, depthwise_conv
from dcls_jax.padding import Padding, explicit_padding

_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
PADDING_MODES = ("zeros", *_PAD_MODES)


def convolve(
    x: Array,
    kernel: Array,
    *,
    stride: Sequence[int],
    padding: Padding,
    groups: int = 1,
    padding_mode: str = "zeros",
    precision: Precision = None,
) -> Array:
    """Cross-correlation in 1, 2 or 3 dimensions, by the fastest lowering known for its shape.

    x (B, *size, in), kernel (*kernel_size, in/groups, out) -> (B, *out_size, out).
    """
    dims = kernel.ndim - 2
    pads = explicit_padding(padding, size=x.shape[1:-1], kernel_size=kernel.shape[:dims], stride=stride)
    if padding_mode != "zeros":
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode=_PAD_MODES[padding_mode])
        pads = ((0, 0),) * dims
    if dims <= 2 and groups == x.shape[-1] > 1:
        # Several outputs of one channel are the outputs of so many copies of it.
        copies = jnp.repeat(x, kernel.shape[-1] // groups, axis=-1)
        cells = kernel[..., 0, :]
        if dims == 2:
            return depthwise_conv(copies, cells, padding=pads, stride=(stride[0], stride[1]), precision=precision)
        row = depthwise_conv(
            copies[:, None],
            cells[None],
            padding=((0, 0), *pads),
            stride=(stride[0], stride[0]),
            precision=precision,
        )
        return row[:, 0]
    spatial = "DHW"[-dims:]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(
        x,
        kernel,
        tuple(stride),
        pads,
        dimension_numbers=layout,
        feature_group_count=groups,
        precision=precision,
    )

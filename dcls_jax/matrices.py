"""Depthwise convolutions of images of one size, kept as the matrices that they are: a product per channel.

Matrix units multiply faster than vector units convolve, but to make a matrix takes longer than its product: `freeze`
makes it once.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.arrays import along_channels, promoted
from dcls_jax.layers import Conv
from dcls_jax.lowerings import times_matrices, toeplitz_matrices
from dcls_jax.methods import keeps_matrices, keeps_matrix, lowering_platform
from dcls_jax.modules import modules_by_path, set_module
from dcls_jax.padding import explicit_padding, output_size

M = TypeVar("M", bound=nnx.Module)


class MatrixConv(nnx.Module):
    """What a depthwise `Conv` makes of images x (B, H, W, C) of one size: each channel's pixels times its matrix.

    The matrices (C, H' W', H W) have the dtype in which it convolves. A pixel that is not a number makes a whole
    channel of its image so, for it is multiplied by zeros too.
    """

    matrix: nnx.Param
    bias: nnx.Param | None

    def __init__(self, conv: Conv, x: jax.ShapeDtypeStruct) -> None:
        size, cells = x.shape[1:3], conv.kernel.shape[:2]
        pads = explicit_padding(conv.padding, size=size, kernel_size=cells, stride=conv.stride)
        self.shape, self.out = x.shape[1:], output_size(size, cells, pads, conv.stride)
        self.dtype, self.precision = conv.dtype, conv.precision
        kernel = conv.kernel[..., 0, :].astype(x.dtype)
        self.matrix = nnx.Param(toeplitz_matrices(kernel, size, (pads[0], pads[1]), (conv.stride[0], conv.stride[1])))
        self.bias = conv.bias

    def __call__(self, x: Array, positions: Any = None) -> Array:
        """x (B, H, W, C) -> (B, H', W', C). ValueError for images of another size than those that it was frozen for."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has shape {x.shape}, expected {('B', *self.shape)}, as the model was frozen for")
        bias = None if self.bias is None else self.bias[...]
        x, matrix, bias = promoted(x, self.matrix[...], bias, dtype=self.dtype)
        y = times_matrices(x, matrix, self.out, self.precision)
        return y if bias is None else y + along_channels(bias, y)


def with_matrices(model: M, images: tuple[int, ...]) -> M:
    """The model, changed in place: matrices for the convolutions that keep theirs, as `keeps_matrix` says.

    images: the shape (B, H, W, C) of what the model is called with. Layers that meet images of several sizes stay.
    """
    platform = lowering_platform()
    if not keeps_matrices(platform):
        return model
    whole = nnx.List([model])  # in which a model that is a convolution has a place too
    convs = {path: conv for path, conv in modules_by_path(whole).items() if isinstance(conv, Conv) and _depthwise(conv)}
    seen = {id(conv): _Seen(conv) for conv in convs.values()}
    for path, conv in convs.items():
        set_module(whole, path, seen[id(conv)])
    jax.eval_shape(whole[0], jax.ShapeDtypeStruct(images, jnp.float32))
    kept = {of: _kept(it, platform) for of, it in seen.items()}
    for path, conv in convs.items():
        set_module(whole, path, kept[id(conv)])
    return whole[0]


class _Seen:
    """A convolution that notes the shape of the images that it is called with, and the dtype in which it convolves."""

    def __init__(self, conv: Conv) -> None:
        self.conv = conv
        self.images: set[tuple[tuple[int, ...], Any]] = set()

    def __call__(self, x: Array, positions: Any = None) -> Array:
        y = self.conv(x)
        self.images.add((x.shape, y.dtype))
        return y


def _kept(seen: _Seen, platform: str) -> Conv | MatrixConv:
    """The matrix of a convolution that is better kept, else the convolution."""
    conv = seen.conv
    if len(seen.images) == 1:
        x = jax.ShapeDtypeStruct(*seen.images.pop())
        if keeps_matrix(platform, x, conv.kernel.shape[:2], (conv.stride[0], conv.stride[1])):
            return MatrixConv(conv, x)
    return conv


def _depthwise(conv: Conv) -> bool:
    """Whether each channel has one kernel of two axes, and beyond images there are zeros."""
    one = conv.groups == conv.in_channels == conv.kernel.shape[-1]
    return one and conv.kernel.ndim == 4 and conv.padding_mode == "zeros"

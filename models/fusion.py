"""Convolutions that train as a sum of branches and infer as one (RepVGG, arXiv 2101.03697; MobileOne, 2206.04040)."""

from dataclasses import dataclass
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.freezing import freeze
from dcls_jax.layers import Conv, Dcls2d
from dcls_jax.models.norms import BatchNorm
from dcls_jax.modules import modules_by_path, set_module

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Filter:
    """What a linear module computes: kernel (k, k, in/groups, out) with k odd, applied in the centre, and bias (out,).

    Filters add, subtract and scale as their outputs do.
    """

    kernel: Array
    bias: Array

    @classmethod
    def of(cls, conv: Conv | Dcls2d) -> "Filter":
        """What a convolution computes that is dense, as all are after `freeze`."""
        assert isinstance(conv, Conv)
        kernel = conv.kernel[...]
        return cls(kernel, jnp.zeros(kernel.shape[-1]) if conv.bias is None else conv.bias[...])

    def __add__(self, other: "Filter") -> "Filter":
        size = max(len(self.kernel), len(other.kernel))
        return Filter(_centred(self.kernel, size) + _centred(other.kernel, size), self.bias + other.bias)

    def __mul__(self, gain: Array | float) -> "Filter":
        """gain: one number, or one per output channel."""
        return Filter(self.kernel * gain, self.bias * gain)

    def __sub__(self, other: "Filter") -> "Filter":
        return self + other * -1

    def then(self, norm: BatchNorm) -> "Filter":
        """Followed by batch normalisation in evaluation mode, which is affine: its value at 0 and its slope."""
        zeros = jnp.zeros_like(self.bias)
        offset, gain = jax.jvp(norm, (zeros,), (zeros + 1,))
        return Filter(self.kernel * gain, self.bias * gain + offset)


def _centred(kernel: Array, size: int) -> Array:
    border = (size - len(kernel)) // 2
    return jnp.pad(kernel, ((border, border), (border, border), (0, 0), (0, 0)))


def identity(channels: int, groups: int) -> Filter:
    """The filter that returns its input."""
    kernel = jnp.tile(jnp.eye(channels // groups), groups)
    return Filter(kernel[None, None], jnp.zeros(channels))


class Fusible(nnx.Module):
    """A module that is linear in evaluation mode, so that one convolution can take its place."""

    stride: int
    groups: int

    def filter(self) -> Filter:
        """What the module computes in evaluation mode, its DCLS layers being dense."""
        raise NotImplementedError

    def fuse(self) -> Conv:
        """The convolution that computes the same."""
        kernel, bias = _kernel_and_bias(self)
        conv = next(module for _, module in nnx.iter_modules(self) if isinstance(module, Conv))
        return Conv.of(
            kernel,
            bias,
            stride=self.stride,
            padding=len(kernel) // 2,
            groups=self.groups,
            dtype=conv.dtype,
            precision=conv.precision,
        )


@jax.jit  # compiled once for all blocks of a stage
def _kernel_and_bias(module: Fusible) -> tuple[Array, Array]:
    filter = module.filter()
    return filter.kernel, filter.bias


def reparameterise(model: M) -> M:
    """A copy for inference with equal outputs, in which one convolution takes the place of each sum of branches.

    DCLS kernels are constructed first, as by `freeze`.
    """
    model = freeze(model)
    model.eval()
    if isinstance(model, Fusible):
        return cast(M, model.fuse())
    fusible = {path: module for path, module in modules_by_path(model).items() if isinstance(module, Fusible)}
    # A module within another one goes with it.
    outermost = {p: module for p, module in fusible.items() if not any(p[:end] in fusible for end in range(len(p)))}
    fused = {id(module): module.fuse() for module in outermost.values()}
    for path, module in outermost.items():
        set_module(model, path, fused[id(module)])
    return model

"""Convolutions that train as a sum of branches and infer as one (RepVGG, arXiv 2101.03697; MobileOne, 2206.04040)."""

from dataclasses import dataclass
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.freezing import freeze, modules_by_path, set_module
from dcls_jax.layers import Conv, Dcls2d, Positions
from dcls_jax.models.activations import gelu
from dcls_jax.models.norms import BatchNorm

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


class ConvNorm(nnx.Module):
    """A convolution of `dim` output channels, then batch normalisation."""

    def __init__(self, conv: Conv | Dcls2d, dim: int, *, rngs: nnx.Rngs):
        self.conv = conv
        self.bn = BatchNorm(dim, rngs=rngs)

    def __call__(self, x: Array, positions: Positions | None = None) -> Array:
        return self.bn(self.conv(x, positions))

    def filter(self) -> Filter:
        return Filter.of(self.conv).then(self.bn)


class MultiBranch(Fusible):
    """Sum of a batch-normalised convolution of each of `sizes` and, where shapes allow, the batch-normalised input."""

    def __init__(
        self, in_dim: int, out_dim: int, sizes: tuple[int, ...], *, stride: int = 1, groups: int = 1, rngs: nnx.Rngs
    ):
        self.stride = stride
        self.groups = groups

        def branch(size: int) -> ConvNorm:
            conv = Conv(
                in_dim,
                out_dim,
                (size, size),
                stride=stride,
                padding=size // 2,
                groups=groups,
                bias=False,
                rngs=rngs,
            )
            return ConvNorm(conv, out_dim, rngs=rngs)

        self.branches = nnx.List(branch(size) for size in sizes)
        self.skip = BatchNorm(out_dim, rngs=rngs) if in_dim == out_dim and stride == 1 else None

    def __call__(self, x: Array) -> Array:
        """x (B, H, W, in_dim) -> (B, H / stride, W / stride, out_dim)."""
        y = sum((branch(x) for branch in self.branches[1:]), self.branches[0](x))
        return y if self.skip is None else y + self.skip(x)

    def filter(self) -> Filter:
        filters = [branch.filter() for branch in self.branches]
        total = sum(filters[1:], filters[0])
        return total if self.skip is None else total + identity(len(total.bias), self.groups).then(self.skip)


class SqueezeExcite(nnx.Module):
    """A gate for each channel, computed from the means of all (arXiv 1709.01507)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.reduce = Conv(dim, dim // 16, (1, 1), rngs=rngs)
        self.expand = Conv(dim // 16, dim, (1, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        mean = x.mean((1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(mean))))


class MobileOne(nnx.Module):
    """A sum of branches, or the convolution that it fuses to, then GELU."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        sizes: tuple[int, ...],
        *,
        stride: int = 1,
        groups: int = 1,
        squeeze_excite: bool = False,
        rngs: nnx.Rngs,
    ):
        self.conv = MultiBranch(in_dim, out_dim, sizes, stride=stride, groups=groups, rngs=rngs)
        self.se = SqueezeExcite(out_dim, rngs=rngs) if squeeze_excite else None

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        return gelu(x if self.se is None else self.se(x))


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

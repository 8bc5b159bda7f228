"""Flax NNX layers: convolution with a dense kernel, and DCLS in one, two and three dimensions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn.initializers import Initializer

from dcls_jax.convolution import PADDING_MODES, convolve
from dcls_jax.interpolation import VERSIONS, Version, has_sigma
from dcls_jax.kernel import construct_kernel, grid_axes
from dcls_jax.padding import Padding


@dataclass(frozen=True)
class DclsConfig:
    """What makes a convolution a DCLS: how many elements, on a grid of which size, interpolated how."""

    kernel_count: int
    dilated_kernel_size: int
    version: Version

    def __post_init__(self) -> None:
        for name in ("kernel_count", "dilated_kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be at least 1")
        if self.version not in VERSIONS:
            raise ValueError(f"version (={self.version!r}) must be one of {', '.join(VERSIONS)}")


def _uniform(fan_in: int) -> Initializer:
    """torch's default for the weight and bias of a convolution: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return cast(Initializer, init)


def _per_axis(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or min(values) < 1:
        raise ValueError(f"{name} (={value}) must be a positive number, or {dims} of them")
    return values


class _Convolution(nnx.Module):
    """What every convolution here has in common: how its kernel meets the image."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: tuple[int, ...],
        padding: Padding,
        groups: int,
        bias: bool,
        padding_mode: str,
        bias_init: Initializer,
        rngs: nnx.Rngs,
    ):
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups (={groups}) must divide in_channels (={in_channels}) and out_channels (={out_channels})"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode (={padding_mode!r}) must be one of {', '.join(PADDING_MODES)}")
        self.stride = stride
        self.padding = padding if isinstance(padding, int | str) else tuple(padding)
        self.groups = groups
        self.padding_mode = padding_mode
        self.bias = nnx.Param(bias_init(rngs.params(), (out_channels,), jnp.float32)) if bias else None

    def convolve(self, x: Array, kernel: Array) -> Array:
        """x (B, *size, in), kernel (*kernel_size, in/groups, out) -> (B, *out_size, out), bias added."""
        y = convolve(
            x,
            kernel.astype(x.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            padding_mode=self.padding_mode,
        )
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Conv(_Convolution):
    """Convolution with a dense kernel, as `nnx.Conv`, but depthwise ones are lowered by `depthwise_conv`.

    Also the frozen form of a DCLS layer, whose call it accepts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_channels // groups, out_channels)
        default = _uniform(math.prod(shape[:-1]))
        super().__init__(
            in_channels,
            out_channels,
            stride=_per_axis(stride, len(kernel_size), "stride"),
            padding=padding,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            bias_init=bias_init or default,
            rngs=rngs,
        )
        self.kernel = nnx.Param((kernel_init or default)(rngs.params(), shape, jnp.float32))

    @classmethod
    def of(
        cls,
        kernel: Array,
        bias: Array | None = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> "Conv":
        """The convolution with a given kernel (*size, in/groups, out) and bias (out,)."""
        *size, in_per_group, out_channels = kernel.shape
        return cls(
            in_per_group * groups,
            out_channels,
            tuple(size),
            stride=stride,
            padding=padding,
            groups=groups,
            bias=bias is not None,
            padding_mode=padding_mode,
            kernel_init=lambda *_: kernel,
            bias_init=None if bias is None else lambda *_: bias,
            rngs=cast(nnx.Rngs, SimpleNamespace(params=lambda: None)),  # nothing is drawn
        )

    def __call__(self, x: Array, positions: "Positions | None" = None) -> Array:
        """x (B, *size, in) -> (B, *out_size, out). A dense kernel has no use for positions."""
        return self.convolve(x, self.kernel[...])


class Positions(nnx.Module):
    """Where the elements of a kernel lie, learnable, to be owned by one layer or shared by several.

    P (dims, out, in/groups, count), in cells from the centre; SIG of the same shape for versions "max" and "gauss".
    Initialised as in the `dcls` package: N(0, 0.5) within the grid; widths 0 ("max") or 0.23 ("gauss").
    """

    def __init__(
        self,
        weight_shape: tuple[int, int, int],
        dilated_kernel_size: tuple[int, ...],
        version: Version,
        *,
        rngs: nnx.Rngs,
    ):
        self.dilated_kernel_size = dilated_kernel_size
        self.version: Version = version
        shape = (len(dilated_kernel_size), *weight_shape)
        self.P = nnx.Param(self._within_grid(0.5 * jax.random.normal(rngs.params(), shape)))
        self.SIG = nnx.Param(jnp.full(shape, 0.23 if version == "gauss" else 0.0)) if has_sigma(version) else None

    def clamp(self) -> None:
        """Move positions that have left the grid back to its border, in place; for training, after each step."""
        self.P[...] = self._within_grid(self.P[...])

    def _within_grid(self, p: Array) -> Array:
        """Of each row by the axis along which it moves; the `dcls` package takes the sizes in their own order."""
        sizes = [self.dilated_kernel_size[axis] for axis in grid_axes(self.version, len(self.dilated_kernel_size))]
        limits = jnp.array([size // 2 for size in sizes], p.dtype)[:, None, None, None]
        return jnp.clip(p, -limits, limits)


class Dcls(_Convolution):
    """Dilated convolution with learnable spacings: a few weighted elements at learnable positions on a larger grid.

    Arguments, defaults and initialisation are those of the `dcls` package, to which are added: padding "SAME" and
    "VALID"; `shared_positions`, for a layer that is handed its positions at each call; `weight_init`, `bias_init`.
    Images are (B, *size, in_channels). Sources: arXiv 2112.03740, 2306.00817.

    Raises ValueError where the arguments do not fit together.
    """

    dims: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: Version = "v1",
        *,
        shared_positions: bool = False,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        if kernel_count < 1:
            raise ValueError(f"kernel_count (={kernel_count}) must be at least 1")
        if version not in VERSIONS:
            raise ValueError(f"version (={version!r}) must be one of {', '.join(VERSIONS)}")
        shape = (out_channels, in_channels // groups, kernel_count)
        default = _uniform(math.prod(shape[1:]))
        super().__init__(
            in_channels,
            out_channels,
            stride=_per_axis(stride, self.dims, "stride"),
            padding=padding,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            bias_init=bias_init or default,
            rngs=rngs,
        )
        self.dilated_kernel_size = _per_axis(dilated_kernel_size, self.dims, "dilated_kernel_size")
        self.version: Version = version
        self.weight = nnx.Param((weight_init or default)(rngs.params(), shape, jnp.float32))
        self.positions = None if shared_positions else Positions(shape, self.dilated_kernel_size, version, rngs=rngs)

    def construct(self, positions: Positions | None = None) -> Array:
        """The dense kernel (*dilated_kernel_size, in/groups, out), from the layer's own positions or those given."""
        positions = self.positions or positions
        if positions is None:
            raise ValueError("this layer shares its positions: call it with the Positions that it shares")
        kernel = construct_kernel(
            self.weight[...],
            positions.P[...],
            None if positions.SIG is None else positions.SIG[...],
            dilated_kernel_size=self.dilated_kernel_size,
            version=self.version,
        )
        return jnp.moveaxis(kernel, (0, 1), (-1, -2))

    def __call__(self, x: Array, positions: Positions | None = None) -> Array:
        """x (B, *size, in) -> (B, *out_size, out); `positions` for a layer made with `shared_positions`."""
        return self.convolve(x, self.construct(positions))

    def clamp(self) -> None:
        """Move the layer's own positions back onto the grid, in place (the package's `clamp_parameters`)."""
        if self.positions is not None:
            self.positions.clamp()


class Dcls1d(Dcls):
    dims = 1
    __doc__ = Dcls.__doc__


class Dcls2d(Dcls):
    dims = 2
    __doc__ = Dcls.__doc__


class Dcls3d(Dcls):
    dims = 3
    __doc__ = Dcls.__doc__

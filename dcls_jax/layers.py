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
from jax.typing import DTypeLike

from dcls_jax.arrays import along_channels, promoted
from dcls_jax.convolution import PADDING_MODES, Precision, convolve
from dcls_jax.interpolation import VERSIONS, Version, has_sigma
from dcls_jax.kernel import construct_kernel, grid_axes
from dcls_jax.padding import Padding, checked_padding, per_axis


@dataclass(frozen=True)
class DclsConfig:
    """What makes a convolution of a model a DCLS: how many elements, on a grid of which odd size, interpolated how."""

    kernel_count: int
    dilated_kernel_size: int
    version: Version

    def __post_init__(self) -> None:
        for name in ("kernel_count", "dilated_kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be at least 1")
        if self.dilated_kernel_size % 2 == 0:  # padded by half of it, an image would grow
            raise ValueError(f"dilated_kernel_size (={self.dilated_kernel_size}) must be odd in a model")
        if self.version not in VERSIONS:
            raise ValueError(f"version (={self.version!r}) must be one of {', '.join(VERSIONS)}")


def torch_uniform(fan_in: int) -> Initializer:
    """PyTorch's default for the weight and bias of convolutions and linear layers: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return cast(Initializer, init)


class _Convolution(nnx.Module):
    """What every convolution here has in common: how its kernel meets the image."""

    in_channels: int
    stride: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    groups: int
    padding_mode: str
    dtype: DTypeLike | None
    precision: Precision
    bias: nnx.Param | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dims: int,
        stride: int | Sequence[int],
        padding: Padding,
        groups: int,
        bias: bool,
        padding_mode: str,
        bias_init: Initializer,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode (={padding_mode!r}) must be one of {', '.join(PADDING_MODES)}")
        self.in_channels = in_channels
        self.stride = per_axis(stride, dims, "stride")
        self.padding = checked_padding(padding, dims)
        self.groups = groups
        self.padding_mode = padding_mode
        self.dtype = dtype
        self.precision = precision
        self.bias = nnx.Param(bias_init(rngs.params(), (out_channels,), param_dtype)) if bias else None

    def with_kernel(self, x: Array, kernel: Array) -> Array:
        """x (B, *size, in), kernel (*kernel_size, in/groups, out) -> (B, *out_size, out), bias added.

        In `dtype`, or in that to which image, kernel and bias promote. Raises ValueError for an x of another shape.
        """
        if x.ndim != kernel.ndim or x.shape[-1] != self.in_channels or 0 in x.shape[1:]:
            raise ValueError(f"x has shape {x.shape}, expected (B, *size, {self.in_channels}) of {x.ndim} axes")
        x, kernel, bias = promoted(x, kernel, None if self.bias is None else self.bias[...], dtype=self.dtype)
        y = convolve(
            x,
            kernel,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            padding_mode=self.padding_mode,
            precision=self.precision,
        )
        return y if bias is None else y + along_channels(bias, y)


def _checked_groups(in_channels: int, out_channels: int, groups: int) -> int:
    """Channels that each group takes."""
    if min(in_channels, out_channels, groups) < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups (={groups}) must divide in_channels (={in_channels}) and out_channels (={out_channels}), all of "
            "them at least 1"
        )
    return in_channels // groups


class Conv(_Convolution):
    """Convolution with a dense kernel, as `nnx.Conv`, but depthwise ones are lowered by `depthwise_conv`.

    Also the frozen form of a DCLS layer, whose call it accepts.
    in_channels, out_channels, groups: channels of images, and into how many independent parts they fall.
    kernel_size: one number per dimension; a number alone is a convolution in one dimension, as in Flax.
    stride: a number, or one per dimension. padding: a number, "SAME", "VALID", or a number or (low, high) pair each.
    padding_mode: "zeros", "reflect", "replicate" or "circular". bias: whether there is one.
    kernel_init, bias_init: PyTorch's uniform initialisers unless given.
    dtype: in which to compute; unless given, that to which image and parameters promote. param_dtype: in which the
    parameters are kept. precision: of products on hardware that has several; None is JAX's default.
    Raises ValueError where the arguments do not fit together.
    """

    kernel: nnx.Param

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Precision = None,
        rngs: nnx.Rngs,
    ):
        dims = len(kernel_size) if isinstance(kernel_size, Sequence) else 1
        size = per_axis(kernel_size, dims, "kernel_size")
        shape = (*size, _checked_groups(in_channels, out_channels, groups), out_channels)
        default = torch_uniform(math.prod(shape[:-1]))
        super().__init__(
            in_channels,
            out_channels,
            dims=dims,
            stride=stride,
            padding=padding,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            bias_init=bias_init or default,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.kernel = nnx.Param((kernel_init or default)(rngs.params(), shape, param_dtype))

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
        dtype: DTypeLike | None = None,
        precision: Precision = None,
    ) -> "Conv":
        """The convolution with a given kernel (*size, in/groups, out) and bias (out,), of which it keeps copies."""
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
            kernel_init=lambda *_: jnp.copy(kernel),
            bias_init=None if bias is None else lambda *_: jnp.copy(bias),
            dtype=dtype,
            precision=precision,
            rngs=cast(nnx.Rngs, SimpleNamespace(params=lambda: None)),  # nothing is drawn
        )

    def __call__(self, x: Array, positions: "Positions | None" = None) -> Array:
        """x (B, *size, in) -> (B, *out_size, out). A dense kernel has no use for positions."""
        return self.with_kernel(x, self.kernel[...])


POSITIONS = ("P", "SIG")  # what `Positions` calls its parameters, as the `dcls` package does


class Positions(nnx.Module):
    """Where the elements of a kernel lie, learnable, to be owned by one layer or shared by several.

    P (dims, out, in/groups, count), in cells from the centre; SIG of the same shape for versions "max" and "gauss".
    Initialised as in the `dcls` package: N(0, 0.5) within the grid, or by `position_init`; widths 0 ("max") or 0.23
    ("gauss"). Both are float32 whatever the dtype of the weights: bfloat16 has no room for a cell of a large grid.
    """

    dilated_kernel_size: tuple[int, ...]
    version: Version
    P: nnx.Param
    SIG: nnx.Param | None

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        dilated_kernel_size: tuple[int, ...],
        version: Version,
        *,
        position_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        self.dilated_kernel_size = dilated_kernel_size
        self.version = version
        shape = (len(dilated_kernel_size), *weight_shape)
        init = position_init or jax.nn.initializers.normal(0.5)
        self.P = nnx.Param(self._within_grid(init(rngs.params(), shape, jnp.float32)))
        width = jnp.full(shape, 0.23 if version == "gauss" else 0, jnp.float32)
        self.SIG = nnx.Param(width) if has_sigma(version) else None

    def clamp(self) -> None:
        """Move positions that have left the grid back to its border, in place; for training, after each step."""
        self.P[...] = self._within_grid(self.P[...])

    def _within_grid(self, p: Array) -> Array:
        """Of each row by the axis along which it moves; the `dcls` package takes the sizes in their own order."""
        sizes = [self.dilated_kernel_size[axis] for axis in grid_axes(self.version, len(self.dilated_kernel_size))]
        limits = jnp.array([size // 2 for size in sizes], p.dtype).reshape(-1, *(1,) * (p.ndim - 1))
        return jnp.clip(p, -limits, limits)


class Dcls(_Convolution):
    """Dilated convolution with learnable spacings: a few weighted elements at learnable positions on a larger grid.

    Images are (B, *size, in_channels); arguments, defaults and initialisation are those of the `dcls` package.
    in_channels, out_channels, groups: channels of images, and into how many independent parts they fall.
    kernel_count: elements of each kernel. dilated_kernel_size: cells of the grid, a number or one per dimension.
    version: how an element spreads over cells: "v0" and "v1" bilinearly, "max" as a triangle and "gauss" as a Gaussian
    of learnable width.
    stride: a number, or one per dimension. padding: a number, "SAME", "VALID", or a number or (low, high) pair each.
    padding_mode: "zeros", "reflect", "replicate" or "circular". bias: whether there is one.
    dense_kernel_size: cells along axes on which nothing moves; see `Dcls3_1d`.
    shared_positions: for a layer that is handed its positions at each call, instead of owning some.
    weight_init, bias_init: PyTorch's uniform initialisers unless given; position_init: N(0, 0.5).
    dtype: in which to convolve; unless given, that to which image and parameters promote. param_dtype: of weights and
    bias; positions and the construction of kernels stay float32. precision: of products on hardware that has several.
    Raises ValueError where the arguments do not fit together. Sources: arXiv 2112.03740, 2306.00817.
    """

    dims: int  # of an image
    grid_dims: int | None = None  # along which elements move, if these are not all
    versions: tuple[Version, ...] = VERSIONS
    dilated_kernel_size: tuple[int, ...]
    version: Version
    weight: nnx.Param
    positions: Positions | None

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
        dense_kernel_size: tuple[int, ...] = (),
        shared_positions: bool = False,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        position_init: Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Precision = None,
        rngs: nnx.Rngs,
    ):
        if version not in self.versions:
            raise ValueError(f"version (={version!r}) must be one of {', '.join(self.versions)}")
        (count,) = per_axis(kernel_count, 1, "kernel_count")
        shape = (out_channels, _checked_groups(in_channels, out_channels, groups), *dense_kernel_size, count)
        default = torch_uniform(math.prod(shape[1:]))
        super().__init__(
            in_channels,
            out_channels,
            dims=self.dims,
            stride=stride,
            padding=padding,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            bias_init=bias_init or default,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.dilated_kernel_size = per_axis(dilated_kernel_size, self.grid_dims or self.dims, "dilated_kernel_size")
        self.version = version
        self.weight = nnx.Param((weight_init or default)(rngs.params(), shape, param_dtype))
        grid, init = self.dilated_kernel_size, position_init
        self.positions = None if shared_positions else Positions(shape, grid, version, position_init=init, rngs=rngs)

    def construct(self, positions: Positions | None = None) -> Array:
        """The dense kernel (*dilated_kernel_size, in/groups, out), from the layer's own positions or those given.

        In the dtype of the weights, rounded to it last. Raises ValueError where there are no positions.
        """
        positions = self.positions or positions
        if positions is None:
            raise ValueError("this layer shares its positions: call it with the Positions that it shares")
        out_channels, in_per_group, *dense, count = self.weight.shape

        def flat(parameter: nnx.Param) -> Array:
            """Each cell of dense axes has elements of its own, as if it were an input channel."""
            return parameter[...].reshape(*parameter.shape[: -self.weight.ndim], out_channels, -1, count)

        kernel = construct_kernel(
            flat(self.weight),
            flat(positions.P),
            None if positions.SIG is None else flat(positions.SIG),
            dilated_kernel_size=self.dilated_kernel_size,
            version=self.version,
        )
        kernel = kernel.reshape(out_channels, in_per_group, *dense, *self.dilated_kernel_size)
        return jnp.moveaxis(kernel, (0, 1), (-1, -2)).astype(self.weight.dtype)

    def __call__(self, x: Array, positions: Positions | None = None) -> Array:
        """x (B, *size, in) -> (B, *out_size, out); `positions` for a layer made with `shared_positions`."""
        return self.with_kernel(x, self.construct(positions=positions))

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


class Dcls2dK1d(Dcls):
    """A 2-D convolution whose elements move along one axis: a kernel one cell wide, that of `Dcls1d`.

    flat_dim: 0 for elements that move along the height, 1 for the width, as in the `dcls` package; the other arguments
    are those of `Dcls2d`, dilated_kernel_size one number.
    """

    dims = 2
    grid_dims = 1
    flat_dim: int

    def __init__(self, *arguments: Any, flat_dim: int = 0, **options: Any):
        if flat_dim not in (0, 1):
            raise ValueError(f"flat_dim (={flat_dim}) must be 0 or 1")
        super().__init__(*arguments, **options)
        self.flat_dim = flat_dim

    def construct(self, positions: Positions | None = None) -> Array:
        """The dense kernel (size, 1, in/groups, out), or (1, size, ...), as `Dcls.construct` gives it."""
        return jnp.expand_dims(super().construct(positions=positions), 1 - self.flat_dim)


class Dcls3_1d(Dcls):
    """A 3-D convolution, dense along its first two axes, each cell of which has elements that move along the third.

    dense_kernel_size: cells along the first two axes, one number or two; dilated_kernel_size: along the third. The
    other arguments are those of `Dcls3d`; versions "v1", "max" and "gauss". Positions start uniform over the grid.
    """

    dims = 3
    grid_dims = 1
    versions = ("v1", "max", "gauss")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dense_kernel_size: int | Sequence[int] = 1,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: Version = "gauss",
        **options: Any,
    ):
        (size,) = per_axis(dilated_kernel_size, 1, "dilated_kernel_size")

        def anywhere(key: Array, shape: Sequence[int], dtype: Any, out_sharding: Any = None) -> Array:
            return jax.random.uniform(key, shape, dtype, -(size // 2), size // 2)

        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            size,
            groups,
            bias,
            padding_mode,
            version,
            **{"position_init": anywhere} | options,
            dense_kernel_size=per_axis(dense_kernel_size, 2, "dense_kernel_size"),
        )

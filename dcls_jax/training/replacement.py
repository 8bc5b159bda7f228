"""Convolutions of any Flax NNX model made DCLS, as the study made eight models (arXiv 2408.03164)."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.linen.linear import canonicalize_padding
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from dcls_jax.convolution import Precision
from dcls_jax.kernel import grid_axes
from dcls_jax.layers import Conv, Dcls, Dcls1d, Dcls2d, Dcls3d, DclsConfig, Positions
from dcls_jax.modules import Path, copied, modules_by_path, set_module
from dcls_jax.padding import per_axis
from dcls_jax.training.paths import dotted, listed

M = TypeVar("M", bound=nnx.Module)
Where = Callable[[Path, nnx.Module], bool]

_LAYERS: Mapping[int, type[Dcls]] = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}


def replace_convolutions(
    model: M,
    config: DclsConfig,
    *,
    where: Where | str | None = None,
    share_positions: bool | Callable[[Path], Hashable] = False,
    keep_weights: bool = False,
    rngs: nnx.Rngs,
) -> M:
    """A copy of a model in which DCLS layers are in the place of convolutions; `replaced` lists them.

    The size of no activation changes: a larger kernel is padded more, and lies around the same pixels.
    where: which of the model's `nnx.Conv` and `dcls_jax.Conv`, by (path, layer) -> bool, the path a tuple of attribute
    names and list indices, or by a pattern of dotted paths, as "stages.*.dwconv"; depthwise ones larger than 1x1 unless
    given. share_positions: whether layers of equal shapes in one stage learn the same positions. The stage of a layer
    is what holds the list of its block: its path up to the last index, or without any, up to the layer itself; a
    function from path to stage says otherwise. Shared positions are one object, for which NNX's graph mode, the
    default, is needed.
    keep_weights: elements start on the cells of the old kernels, with their values, and biases are kept; with versions
    "v0", "v1" and "max" the output is unchanged, up to rounding. (In the latter two the elements lie a rounding beside
    their cells, on which they would have no gradient.) Otherwise weights start at random, N(0, 0.02), as in the study's
    models, biases at 0, and positions as in the `dcls` package, by `rngs`.
    Raises ValueError if nothing is chosen, for a convolution that DCLS has no form of, and where `keep_weights` does
    not fit: config.kernel_count must be the number of the kernel's cells, the grid no smaller than the kernel.
    """
    model = copied(model)
    found = {path: module for path, module in modules_by_path(model).items() if isinstance(module, nnx.Conv | Conv)}
    chosen = _chosen(found, where)
    forms = {path: _Form.of(layer, dotted(path)) for path, layer in chosen.items()}
    for path, form in forms.items():
        form.check(config, keep_weights, dotted(path))

    stage_of = share_positions if callable(share_positions) else _stage
    shared: dict[Hashable, Positions] = {}
    made: dict[int, Dcls] = {}
    for path, form in forms.items():
        layer = form.dcls(config, keep_weights, rngs)
        if share_positions:
            start = (form.size, form.dilation) if keep_weights else None
            key = (stage_of(path), layer.weight.shape, start)
            layer.positions = shared.setdefault(key, cast(Positions, layer.positions))
        made[id(chosen[path])] = layer
    for path, module in found.items():
        if id(module) in made:  # at each of its places, if it is at several
            if path == ():
                return cast(M, made[id(module)])
            set_module(model, path, made[id(module)])
    return model


def replaced(model: nnx.Module) -> dict[str, Dcls]:
    """The DCLS layers of a model by dotted path; of a model that had none, what `replace_convolutions` put in it."""
    return {dotted(path): module for path, module in modules_by_path(model).items() if isinstance(module, Dcls)}


def _chosen(found: Mapping[Path, nnx.Conv | Conv], where: Where | str | None) -> dict[Path, nnx.Conv | Conv]:
    """The convolutions that `where` chooses, each once."""
    chooses = _predicate(where)
    chosen: dict[int, tuple[Path, nnx.Conv | Conv]] = {}
    for path, layer in found.items():
        if chooses(path, layer):
            chosen.setdefault(id(layer), (path, layer))
    if not chosen:
        wanted = "there is no depthwise one larger than 1x1" if where is None else f"where (={where!r}) chooses none"
        there = [f"{dotted(path)} ({_described(layer)})" for path, layer in found.items()]
        raise ValueError(f"{wanted} of the model's convolutions: {listed(there, between='; ') or 'it has none'}")
    return dict(chosen.values())


def _predicate(where: Where | str | None) -> Where:
    if where is None:
        return _is_large_depthwise
    if isinstance(where, str):
        return lambda path, _: fnmatchcase(dotted(path), where)
    return where


def _kernel_of(layer: nnx.Conv | Conv) -> tuple[tuple[int, ...], int]:
    """Size, groups."""
    groups = layer.groups if isinstance(layer, Conv) else layer.feature_group_count
    return layer.kernel.shape[:-2], groups


def _described(layer: nnx.Conv | Conv) -> str:
    size, groups = _kernel_of(layer)
    return f"{'x'.join(map(str, size))}, {layer.kernel.shape[-2] * groups} to {layer.kernel.shape[-1]}, groups {groups}"


def _is_large_depthwise(path: Path, layer: nnx.Module) -> bool:
    layer = cast(nnx.Conv | Conv, layer)
    size, groups = _kernel_of(layer)
    return groups > 1 and layer.kernel.shape[-2] == 1 and math.prod(size) > 1


def _stage(path: Path) -> Path:
    """Up to the last index: `stages.0.blocks` of `stages.0.blocks.2.dwconv`."""
    ends = [end for end, name in enumerate(path) if isinstance(name, int)]
    return path[: ends[-1]] if ends else path[:-1]


@dataclass(frozen=True)
class _Form:
    """What two kinds of convolutional layers say of themselves in their own ways."""

    kernel: Array  # (*size, in/groups, out)
    bias: Array | None
    stride: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    padding_mode: str
    dilation: tuple[int, ...]
    groups: int
    dtype: DTypeLike | None
    precision: Precision

    @classmethod
    def of(cls, layer: nnx.Conv | Conv, name: str) -> "_Form":
        size, groups = _kernel_of(layer)
        dims = len(size)
        bias = None if layer.bias is None else layer.bias[...]
        if isinstance(layer, Conv):
            padding, mode, stride, dilation = layer.padding, layer.padding_mode, layer.stride, (1,) * dims
        else:
            if tuple(size) != tuple(layer.kernel_size) or dims not in _LAYERS:
                raise ValueError(f"{name}: no kernel of one layer in 1 to 3 dimensions has shape {layer.kernel.shape}")
            if layer.mask is not None or set(per_axis(layer.input_dilation or 1, dims, "input_dilation")) != {1}:
                raise ValueError(f"{name}: a DCLS has no mask and no input_dilation")
            stride = per_axis(layer.strides or 1, dims, "strides")
            dilation = per_axis(layer.kernel_dilation or 1, dims, "kernel_dilation")
            padding, mode = _flax_padding(layer.padding, size, dilation, name)
        return cls(
            layer.kernel[...], bias, stride, padding, mode, dilation, groups, layer.dtype, cast(Any, layer.precision)
        )

    @property
    def size(self) -> tuple[int, ...]:
        """Cells of the kernel."""
        return self.kernel.shape[:-2]

    @property
    def reach(self) -> tuple[int, ...]:
        """Pixels from its first to its last cell."""
        return tuple((cells - 1) * step + 1 for cells, step in zip(self.size, self.dilation, strict=True))

    def check(self, config: DclsConfig, keep_weights: bool, name: str) -> None:
        """Raises ValueError, with the layer's name, where no DCLS of that configuration can take its place."""
        count, grid = config.kernel_count, config.dilated_kernel_size
        cells, reach = math.prod(self.size), max(self.reach)
        if keep_weights and count != cells:
            raise ValueError(f"{name}: to keep its weights, kernel_count (={count}) must be its {cells} cells")
        if keep_weights and grid < reach:
            raise ValueError(f"{name}: to keep its weights, dilated_kernel_size (={grid}) must be at least {reach}")
        steady = all(reach % 2 and reach >= step for reach, step in zip(self.reach, self.stride, strict=True))
        if self.depends_on_image and not steady:
            raise ValueError(f"{name}: what 'SAME' pads with stride {self.stride} depends on the image: give numbers")
        if not self.depends_on_image and min(min(pair) for pair in self._widened(grid)) < 0:
            raise ValueError(
                f"{name}: its output would be larger with dilated_kernel_size {grid}, as it is padded less"
            )

    @property
    def depends_on_image(self) -> bool:
        """Whether what is padded does: with a stride, "SAME" pads what is missing at the end."""
        return self.padding == "SAME" and set(self.stride) != {1}

    def _widened(self, grid: int) -> tuple[tuple[int, int], ...]:
        """The padding with which a grid around the middle of the kernel sees what the kernel saw."""
        padding = self.padding
        if padding == "SAME":
            padding = tuple(((reach - 1) // 2, reach // 2) for reach in self.reach)
        elif padding == "VALID":
            padding = ((0, 0),) * len(self.reach)

        def widened(pair: tuple[int, int], reach: int) -> tuple[int, int]:
            before = grid // 2 - reach // 2
            return pair[0] + before, pair[1] + grid - reach - before

        return tuple(widened(*each) for each in zip(cast(tuple, padding), self.reach, strict=True))

    def dcls(self, config: DclsConfig, keep_weights: bool, rngs: nnx.Rngs) -> Dcls:
        in_per_group, out_channels = self.kernel.shape[-2:]
        grid = config.dilated_kernel_size
        weight_init: Initializer = jax.nn.initializers.normal(0.02)
        bias_init: Initializer = jax.nn.initializers.zeros
        position_init = None
        if keep_weights:
            weight_init, position_init = _given(self._values()), _given(self._cells(config))
            bias_init = bias_init if self.bias is None else _given(self.bias)
        return _LAYERS[len(self.size)](
            in_per_group * self.groups,
            out_channels,
            config.kernel_count,
            self.stride,
            "SAME" if self.depends_on_image else self._widened(grid),
            grid,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            config.version,
            weight_init=weight_init,
            bias_init=bias_init,
            position_init=position_init,
            dtype=self.dtype,
            param_dtype=self.kernel.dtype,
            precision=self.precision,
            rngs=rngs,
        )

    def _values(self) -> Array:
        """The kernel as weights of elements: (out, in/groups, cells)."""
        return jnp.moveaxis(self.kernel, (-1, -2), (0, 1)).reshape(*self.kernel.shape[:-3:-1], -1)

    def _cells(self, config: DclsConfig) -> Array:
        """Where those elements are: (dims, out, in/groups, cells), from the middle of the grid."""
        cells = np.array(list(product(*map(range, self.size))), np.float32)  # (cells, dims)
        places = cells * np.array(self.dilation) - np.array([reach // 2 for reach in self.reach])
        if config.version in ("v1", "max"):
            # Exactly on a cell, the top of a triangle, an element has no slope and would stay for ever: a rounding off.
            places -= np.where(places > 0, 1, -1) * np.spacing(np.float32(config.dilated_kernel_size))
        rows = places.T[list(grid_axes(config.version, len(self.size)))]
        shape = (len(rows), *self.kernel.shape[:-3:-1], len(cells))
        return jnp.asarray(np.broadcast_to(rows[:, None, None], shape), jnp.float32)


def _flax_padding(
    padding: Any, size: tuple[int, ...], dilation: tuple[int, ...], name: str
) -> tuple[str | tuple[tuple[int, int], ...], str]:
    """Padding and its mode, of what `nnx.Conv` may be told."""
    pads = canonicalize_padding(padding, len(size))
    reach = [(cells - 1) * step + 1 for cells, step in zip(size, dilation, strict=True)]
    match pads:
        case "SAME" | "VALID":
            return pads, "zeros"
        case "CIRCULAR" | "REFLECT":
            return tuple(((r - 1) // 2, r // 2) for r in reach), pads.lower()
        case "CAUSAL":
            return ((reach[0] - 1, 0),), "zeros"
        case str():
            raise ValueError(f"{name}: its padding {pads!r} is none that a DCLS has")
    return tuple((low, high) for low, high in pads), "zeros"


def _given(values: Array) -> Initializer:
    return cast(Initializer, lambda key, shape, dtype, *_: jnp.asarray(values, dtype).reshape(shape))

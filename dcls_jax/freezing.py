"""Which positions each DCLS layer of a model uses, and kernels constructed once, for inference."""

from collections.abc import Iterator
from typing import TypeVar, cast

from flax import nnx

from dcls_jax.layers import Conv, Dcls, Positions
from dcls_jax.matrices import with_matrices
from dcls_jax.modules import Path, copied, modules_by_path, set_module

M = TypeVar("M", bound=nnx.Module)


def dcls_layers(model: nnx.Module) -> Iterator[tuple[Path, Dcls, Path]]:
    """Every DCLS layer of a model: its path, the layer, and the path of the `Positions` that it uses.

    A layer that shares its positions uses those of the nearest module around it that has an attribute `positions`.
    Raises ValueError for a layer that finds none.
    """
    modules = modules_by_path(model)
    for path, layer in modules.items():
        if not isinstance(layer, Dcls):
            continue
        owners = ((*path[:end], "positions") for end in range(len(path), -1, -1))
        owner = next((o for o in owners if isinstance(modules.get(o), Positions)), None)
        if owner is None:
            raise ValueError(f"no module around DCLS layer {'.'.join(map(str, path))!r} has `positions` for it to use")
        yield path, layer, owner


def freeze(model: M, images: tuple[int, ...] | None = None) -> M:
    """A copy for inference with equal outputs, in which each DCLS layer is a dense convolution, constructed once.

    It shares no array with the model, whose buffers a training step may donate. Layers that are one module at several
    places stay one.
    images: the shape (B, H, W, C) of what the copy will be called with, any B, if it is always that. Then depthwise
    convolutions of small images keep the matrices that they are (`MatrixConv`) where these are faster: on TPUs.
    Raises ValueError for a DCLS layer whose positions are not found (see `dcls_layers`).
    """
    model = copied(model)
    modules = modules_by_path(model)
    found = list(dcls_layers(model))
    dense: dict[tuple[int, int], Conv] = {}
    for _, layer, owner in found:
        positions = cast(Positions, modules[owner])
        if (id(layer), id(positions)) not in dense:
            dense[id(layer), id(positions)] = _dense(layer, positions)
    for path, layer, owner in found:
        conv = dense[id(layer), id(modules[owner])]
        if path == ():  # the model is a single layer
            model = cast(M, conv)
        else:
            set_module(model, path, conv)
    for shared in {owner for path, _, owner in found if owner[:-1] != path}:
        set_module(model, shared, None)
    return model if images is None else with_matrices(model, images)


def _dense(layer: Dcls, positions: Positions) -> Conv:
    return Conv.of(
        layer.construct(positions),
        None if layer.bias is None else layer.bias[...],
        stride=layer.stride,
        padding=layer.padding,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        dtype=layer.dtype,
        precision=layer.precision,
    )

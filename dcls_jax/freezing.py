"""Which positions each DCLS layer of a model uses, and kernels constructed once, for inference."""

from collections.abc import Iterator
from typing import Any, TypeVar, cast

from flax import nnx

from dcls_jax.layers import Conv, Dcls, Positions

M = TypeVar("M", bound=nnx.Module)
Path = tuple[Any, ...]  # attribute names and list indices


def dcls_layers(model: nnx.Module) -> Iterator[tuple[Path, Dcls, Path]]:
    """Every DCLS layer of a model: its path, the layer, and the path of the `Positions` that it uses.

    A layer that shares its positions uses those of the nearest module around it that has an attribute `positions`.
    Raises ValueError for a layer that finds none.
    """
    modules = dict(nnx.iter_modules(model))
    for path, layer in modules.items():
        if not isinstance(layer, Dcls):
            continue
        owners = ((*path[:end], "positions") for end in range(len(path), -1, -1))
        owner = next((o for o in owners if isinstance(modules.get(o), Positions)), None)
        if owner is None:
            raise ValueError(f"no module around DCLS layer {'.'.join(map(str, path))!r} has `positions` for it to use")
        yield path, layer, owner


def freeze(model: M) -> M:
    """A copy for inference with equal outputs, in which each DCLS layer is a dense convolution, constructed once.

    Raises ValueError for a DCLS layer whose positions are not found (see `dcls_layers`).
    """
    model = nnx.clone(model)
    found = list(dcls_layers(model))
    dense = {path: _dense(layer, module_at(model, owner)) for path, layer, owner in found}
    if () in dense:  # the model is a single layer
        return cast(M, dense[()])
    for path, conv in dense.items():
        set_module(model, path, conv)
    for shared in {owner for _, _, owner in found if owner[:-1] not in dense}:
        set_module(model, shared, None)
    return model


def _dense(layer: Dcls, positions: nnx.Module) -> Conv:
    return Conv.of(
        layer.construct(cast(Positions, positions)),
        None if layer.bias is None else layer.bias[...],
        stride=layer.stride,
        padding=layer.padding,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        dtype=layer.dtype,
        precision=layer.precision,
    )


def module_at(model: nnx.Module, path: Path) -> nnx.Module:
    """The module at a path of attribute names and list indices."""
    for name in path:
        model = model[name] if isinstance(name, int) else getattr(model, name)  # type: ignore[index]
    return model


def set_module(model: nnx.Module, path: Path, module: nnx.Module | None) -> None:
    """Put a module at a path, in place."""
    parent, name = module_at(model, path[:-1]), path[-1]
    if isinstance(name, int):
        parent[name] = module  # type: ignore[index]
    else:
        setattr(parent, name, module)

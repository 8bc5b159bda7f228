"""Which positions each DCLS layer of a model uses, and kernels constructed once, for inference."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from dcls_jax.layers import Conv, Dcls, Positions

M = TypeVar("M", bound=nnx.Module)
Path = tuple[Any, ...]  # attribute names, list indices and keys


def modules_by_path(model: nnx.Module) -> dict[Path, nnx.Module]:
    """Every module of a model under every path that leads to it: one that is used at two places is there twice."""
    found: dict[Path, nnx.Module] = {}

    def visit(node: Any, path: Path, around: tuple[int, ...]) -> None:
        if id(node) in around:  # a module that knows the one that it is in
            return
        if isinstance(node, nnx.Module):
            found[path] = node
        if isinstance(node, nnx.Module | Mapping | list | tuple):
            for name, child in _children(node):
                visit(child, (*path, name), (*around, id(node)))

    visit(model, (), ())
    return found


def _children(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, nnx.List | list | tuple):
        return list(enumerate(node))
    return list(node.items() if isinstance(node, Mapping) else vars(node).items())


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


def freeze(model: M) -> M:
    """A copy for inference with equal outputs, in which each DCLS layer is a dense convolution, constructed once.

    It shares no array with the model, whose buffers a training step may donate. Layers that are one module at several
    places stay one. Raises ValueError for a DCLS layer whose positions are not found (see `dcls_layers`).
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
            return cast(M, conv)
        set_module(model, path, conv)
    for shared in {owner for path, _, owner in found if owner[:-1] != path}:
        set_module(model, shared, None)
    return model


def copied(model: M) -> M:
    """The model with arrays of its own."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.copy, state))


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


def module_at(model: nnx.Module, path: Path) -> Any:
    """What is at a path of attribute names, list indices and keys."""
    node: Any = model
    for name in path:
        node = getattr(node, name) if isinstance(node, nnx.Module) and isinstance(name, str) else node[name]
    return node


def set_module(model: nnx.Module, path: Path, module: nnx.Module | None) -> None:
    """Put a module at a path, in place."""
    parent, name = module_at(model, path[:-1]), path[-1]
    if isinstance(parent, nnx.Module) and isinstance(name, str):
        setattr(parent, name, module)
    else:
        parent[name] = module

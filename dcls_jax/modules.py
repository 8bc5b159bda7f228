"""The modules of a model, by the paths that lead to them."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

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


def module_at(model: nnx.Module, path: Path) -> Any:
    """What is at a path of attribute names, list indices and keys."""
    node: Any = model
    for name in path:
        node = getattr(node, name) if isinstance(node, nnx.Module) and isinstance(name, str) else node[name]
    return node


def set_module(model: nnx.Module, path: Path, module: Any) -> None:
    """Put a module, what is called like one, or None at a path, in place."""
    parent, name = module_at(model, path[:-1]), path[-1]
    if isinstance(parent, nnx.Module) and isinstance(name, str):
        setattr(parent, name, module)
    else:
        parent[name] = module


def copied(model: M) -> M:
    """The model with arrays of its own."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.copy, state))

"""Dataclasses whose arrays go through `jax.jit` as arrays do."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

C = TypeVar("C", bound=type)


def pytree(cls: C) -> C:
    """Register a dataclass as a pytree; fields with metadata {"static": True} belong to its structure.

    As `jax.tree_util.register_dataclass`, of which jaxlib (0.10 to 0.12) takes two classes with the same fields for one
    structure: `jax.jit` then finds, now and then, the program of the other class, and its result.
    """
    fields = dataclasses.fields(cls)
    static = [field.name for field in fields if field.metadata.get("static")]
    dynamic = [field.name for field in fields if field.name not in static]

    def flatten(instance: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(instance, name) for name in dynamic), tuple(getattr(instance, name) for name in static)

    def flatten_with_keys(instance: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        values, aux = flatten(instance)
        return tuple((jax.tree_util.GetAttrKey(name), value) for name, value in zip(dynamic, values, strict=True)), aux

    def unflatten(aux: tuple[Any, ...], values: Iterable[Any]) -> Any:
        return cls(**dict(zip(dynamic, values, strict=True)), **dict(zip(static, aux, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls

"""Functions of models as programs, compiled once for all models of one structure, whatever their weights."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax import Array

from dcls_jax.cam.targets import as_pytree, traced
from dcls_jax.compilation import compiler_options


def run(function: Callable[..., Any], *arguments: Any, **static: Any) -> Any:
    """function(*arguments, **static) as one program.

    function: one that lasts, not a new one for each call. arguments: pytrees of arrays, models among them, of which
    other values run the same program. static: hashable. Inside a `jax.jit` the caller chooses how to compile.
    """
    leaves, structure = jax.tree.flatten(arguments)
    program = _program(function, is_traced(leaves))
    return program(leaves, structure=structure, static=tuple(static.items()))


@cache
def _program(function: Callable[..., Any], inside: bool) -> Callable[..., Any]:
    def program(leaves: Sequence[Array], *, structure: Any, static: tuple[tuple[str, Any], ...]) -> Any:
        return function(*jax.tree.unflatten(structure, leaves), **dict(static))

    program.__name__ = function.__name__
    options = None if inside else compiler_options()
    return jax.jit(program, static_argnames=("structure", "static"), compiler_options=options)


def is_traced(arguments: Any) -> bool:
    """Whether arguments, or all that is computed here, belong to a program being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in [jnp.zeros(()), *jax.tree.leaves(arguments)])


def leaf_types(model: Any, leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Shapes and dtypes of a model's leaves. Raises ValueError for a model that holds something else than arrays."""
    try:
        return tuple(map(jax.typeof, leaves))
    except TypeError as error:
        name = type(model).__name__
        raise ValueError(f"model (a {name}) must be a pytree of arrays, such as a Flax module") from error


_programs: WeakKeyDictionary[Callable[..., Any], dict[Any, Any]] = WeakKeyDictionary()


def as_program(targets: Any, output: Any) -> Any:
    """`traced`, once for each function and shape of output."""
    if not callable(targets) or not jax.tree_util.all_leaves([targets]):
        return as_pytree(targets)
    try:
        known = _programs.setdefault(targets, {})
    except TypeError:  # it cannot be referred to weakly
        return traced(targets, output)
    shapes = jax.tree.structure(output), tuple((x.shape, x.dtype) for x in jax.tree.leaves(output))
    if shapes not in known:
        known[shapes] = traced(targets, output)
    return known[shapes]

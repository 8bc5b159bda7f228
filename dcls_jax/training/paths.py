"""Leaves of parameter trees by name."""

from collections.abc import Sequence
from typing import Any

import jax

Path = tuple[str | int, ...]  # attribute names, list indices and keys


def path_of(entries: tuple[Any, ...]) -> Path:
    """The names on JAX's way to a leaf; that a Flax variable has its array under `value` goes without saying."""
    names = tuple(_name(entry) for entry in entries)
    inside_variable = names[-1:] == ("value",) and isinstance(entries[-1], jax.tree_util.GetAttrKey)
    return names[:-1] if inside_variable else names


def _name(entry: Any) -> str | int:
    match entry:
        case jax.tree_util.GetAttrKey():
            return entry.name
        case jax.tree_util.SequenceKey():
            return entry.idx
        case _:  # DictKey, FlattenedIndexKey
            return entry.key


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def paths_in(tree: Any) -> list[Path]:
    """The path of every leaf, in order."""
    return [path_of(entries) for entries, _ in jax.tree_util.tree_leaves_with_path(tree)]


def listed(names: Sequence[str], most: int = 12, between: str = ", ") -> str:
    """Names for a message, of many the first ones."""
    rest = len(names) - most
    return between.join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

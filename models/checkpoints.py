"""Weights in and out: published PyTorch state dicts, loaded strictly from both sides, and Orbax checkpoints.

A model is described by the names and layouts of PyTorch: its own paths with `weight` for kernels and scales,
`running_mean` and `running_var` for batch statistics, and positions listed under every layer that uses them, as the
`dcls` package does. Each family lists the renames that lead from published names to these.
"""

import itertools
import pathlib
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from dcls_jax.files import as_path, is_url, local_copy
from dcls_jax.freezing import dcls_layers
from dcls_jax.layers import POSITIONS
from dcls_jax.models.folders import absolute, is_checkpoint, read_tree, write_tree
from dcls_jax.models.state_dicts import CheckpointError, flat_state_dict, hub_file, read_state_dict, shortened
from dcls_jax.modules import Path, modules_by_path

M = TypeVar("M", bound=nnx.Module)
V = TypeVar("V")
StateDict = Mapping[str, np.ndarray]

_PREFIXES = ("module", "_orig_mod", "model")  # of DataParallel, torch.compile and Lightning
# of batch norms, of profilers such as thop, and of averaged models
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_SAVED = (nnx.Param, nnx.BatchStat)
_HUGE = 1e10  # what no weight or statistic of a sound model is beyond


class Rename(NamedTuple):
    """What `pattern` matches in a key becomes `name`; with `where`, only in checkpoints with a key that it matches."""

    pattern: str
    name: str
    where: str | None = None


def load_weights(
    model: M, source: str | PathLike[str] | StateDict, *, swap_positions: bool = False, new_head: bool = False
) -> M:
    """A copy of a model, or of a single layer, with the weights of a checkpoint, on the devices that its own are on.

    source: a .pth, .pth.tar, .pt or .bin (needs the torch extra) or .safetensors file, a folder of a model hub with
    one of these or with shards and their index, an Orbax folder written by `save_weights`, the URL of any of these, or
    a state dict of arrays or tensors, which are copied. Keys may be the original repository's, timm's or the DCLS
    study's, under the prefixes of wrappers that the model has no part of the name of; counters of batches, profilers
    and averages are left out.
    swap_positions: exchange the axes of 2-D positions, for v0 checkpoints trained with `dcls` 0.0.2 to 0.0.5.
    new_head: leave the checkpoint's classifier out; the model keeps its own, if it has one.

    Raises CheckpointError (a ValueError) where the file cannot be read or does not fit: it lists missing, unexpected,
    misshapen and mistyped keys, ten of each, and positions that should be shared but differ. Raises FileNotFoundError,
    and OSError where a file cannot be opened. Warns of weights that are not finite or larger than 1e10.
    """
    if isinstance(source, str) and is_url(source):
        there = as_path(source)
        if not there.exists():
            raise FileNotFoundError(f"no checkpoint at {source}")
        with local_copy(there) as copy:
            return load_weights(model, copy, swap_positions=swap_positions, new_head=new_head)
    if not isinstance(source, str | PathLike):
        found, ours = flat_state_dict(source, "the state dict"), False
    else:
        path = absolute(source)
        if not path.exists():
            raise FileNotFoundError(f"no checkpoint at {source}")
        file = _file_at(path)
        ours = file is None
        found = read_tree(path) if file is None else read_state_dict(file)
    slots = _own_slots(model) if ours else _slots(model)
    renames = getattr(model, "checkpoint_renames", ())
    keys = {key: key for key in found} if ours else _fitting_names(found, slots, renames)
    found = {name: found[key] for name, key in keys.items()}
    if swap_positions:
        found = {name: array[::-1] if name.rpartition(".")[2] in POSITIONS else array for name, array in found.items()}
    if new_head:
        slots, found = _without_head(slots), _without_head(found)
    _check(slots, found, keys)
    if odd := [keys[name] for name, slot in slots.items() if not slot.holds(found[name])]:
        warnings.warn(f"weights that are not finite or too large: {', '.join(shortened(odd, 3))}", stacklevel=2)
    return _with_leaves(model, {slot.path: slot.from_torch(found[name]) for name, slot in slots.items()})


def _file_at(path: pathlib.Path) -> pathlib.Path | None:
    """The file of a state dict, a hub's where the path is its folder; None for any other folder."""
    if not path.is_dir():
        return path
    return None if is_checkpoint(path) else hub_file(path)


def checkpoint_names(keys: Iterable[str], renames: Iterable[Rename], parts: Collection[str] = ()) -> dict[str, str]:
    """Our name for each key of a checkpoint, by name; counters are left out. Raises CheckpointError.

    parts: the model's own, which are no prefixes of wrappers.
    """
    prefixes = "|".join(prefix for prefix in _PREFIXES if prefix not in parts)
    bare = {key: re.sub(rf"^(?:(?:{prefixes})\.)+", "", key) for key in keys if key.rpartition(".")[2] not in _COUNTERS}
    applicable = [it for it in renames if it.where is None or any(re.search(it.where, key) for key in bare.values())]
    names: dict[str, str] = {}
    for key, name in bare.items():
        for rename in applicable:
            name = re.sub(rename.pattern, rename.name, name)
        if name in names:
            raise CheckpointError(f"checkpoint keys {names[name]} and {key} both name {name}")
        names[name] = key
    return names


def _fitting_names(keys: Collection[str], slots: Mapping[str, Any], renames: Iterable[Rename]) -> dict[str, str]:
    """`checkpoint_names`; raises CheckpointError where a prefix of all keys is all that keeps them from fitting."""
    parts = {name.partition(".")[0] for name in slots}
    names = checkpoint_names(keys, renames, parts)
    if names.keys() & slots.keys():
        return names
    columns = zip(*(key.split(".")[:-1] for key in keys), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    prefix = "".join(f"{column[0]}." for column in shared)
    if prefix and checkpoint_names([key.removeprefix(prefix) for key in keys], renames, parts).keys() & slots.keys():
        raise CheckpointError(f"every key of the checkpoint begins with {prefix!r}, and fits the model without it")
    return names


@dataclass(frozen=True)
class _Slot:
    """A place for one array of a checkpoint: where it goes and how PyTorch lays it out."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    torch_axes: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.torch_axes)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is PyTorch's, or that of the 1x1 convolution which does the same."""
        spatial = shape[len(self.shape) :]
        return shape[: len(self.shape)] == self.torch_shape and all(size == 1 for size in spatial)

    def holds(self, array: np.ndarray) -> bool:
        """Whether all values are finite here, and plausible."""
        limit = min(_HUGE, float(jnp.finfo(self.dtype).max)) if jnp.issubdtype(self.dtype, jnp.floating) else np.inf
        return array.size == 0 or -limit <= float(array.min()) <= float(array.max()) <= limit  # NaN is in no order

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.torch_axes)

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.torch_shape).transpose(np.argsort(self.torch_axes))


def _leaves(model: nnx.Module) -> dict[Path, nnx.Variable]:
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Any(*_SAVED))))


def _slots(model: nnx.Module) -> dict[str, _Slot]:
    """Every key that a PyTorch checkpoint of the model has."""
    leaves, modules = _leaves(model), modules_by_path(model)
    users: dict[int, list[Path]] = {}
    for layer_path, _, owner in dcls_layers(model):
        users.setdefault(id(modules[owner]), []).append(layer_path)
    slots = {}
    for path, leaf in leaves.items():
        *parents, name = path
        # Kernels are (*size, in, out) here and (out, in, *size) in PyTorch.
        axes = tuple(range(leaf.ndim))
        if name == "kernel":
            axes = (leaf.ndim - 1, leaf.ndim - 2, *axes[:-2])
        slot = _Slot(path, leaf.shape, leaf.dtype, axes)
        for owner in users.get(id(modules[tuple(parents)]), [tuple(parents)]):
            slots[".".join(map(str, (*owner, _TORCH_LEAVES.get(name, name))))] = slot
    return slots


def _own_slots(model: nnx.Module) -> dict[str, _Slot]:
    """Every path of an Orbax checkpoint of the model, whose arrays are laid out as here."""
    return {
        ".".join(map(str, path)): _Slot(path, leaf.shape, leaf.dtype, tuple(range(leaf.ndim)))
        for path, leaf in _leaves(model).items()
    }


def _check(slots: Mapping[str, _Slot], found: StateDict, keys: Mapping[str, str]) -> None:
    """Raise CheckpointError unless what was found is what is wanted; `keys` are the checkpoint's own for our names."""

    def called(name: str) -> str:
        key = keys.get(name, name)
        return name if key == name else f"{key} ({name})"

    problems: dict[str, list[str]] = {
        "missing": sorted(slots.keys() - found.keys()),
        "unexpected": sorted(map(called, found.keys() - slots.keys())),
        "misshapen": [],
        "mistyped": [],
        "unequal": [],
    }
    first: dict[Path, str] = {}
    for name in sorted(slots.keys() & found.keys()):
        slot, array = slots[name], found[name]
        if not slot.fits(array.shape):
            problems["misshapen"].append(f"{called(name)} has shape {array.shape}, expected {slot.torch_shape}")
            continue
        if jnp.issubdtype(slot.dtype, jnp.floating) and not jnp.issubdtype(array.dtype, jnp.floating):
            problems["mistyped"].append(f"{called(name)} has dtype {array.dtype}, expected floating-point numbers")
            continue
        other = first.setdefault(slot.path, name)
        if other != name and not np.array_equal(array, found[other], equal_nan=True):
            problems["unequal"].append(f"{called(other)} and {called(name)} should be one shared array")
    lines = [f"{kind}: {line}" for kind, all_of_it in problems.items() for line in shortened(all_of_it)]
    if lines:
        raise CheckpointError("\n  ".join(["the checkpoint does not fit the model", *lines]))


def _without_head(by_name: dict[str, V]) -> dict[str, V]:
    return {name: value for name, value in by_name.items() if not name.startswith("fc.")}


def _with_leaves(model: M, leaves: Mapping[Path, np.ndarray]) -> M:
    graphdef, state = nnx.split(model)

    def value(path: Path, leaf: nnx.Variable) -> Array:
        sharding = getattr(leaf.get_value(), "sharding", None)
        if path in leaves:  # NumPy copies and converts; JAX would compile a program for each shape
            array = jnp.asarray(np.array(leaves[path], leaf.dtype), leaf.dtype)
        else:
            array = jnp.copy(leaf.get_value())
        return jax.device_put(array, sharding) if isinstance(sharding, NamedSharding) else array

    with np.errstate(over="ignore"):  # `load_weights` warns of what is too large
        flat = {path: leaf.replace(value(path, leaf)) for path, leaf in nnx.to_flat_state(state)}
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def save_weights(model: nnx.Module, folder: str | PathLike[str]) -> None:
    """Write parameters and batch statistics as an Orbax checkpoint: nested dicts of numpy arrays, by our own names.

    A checkpoint at `folder` is replaced once the new one is complete, and only if nothing else is in the folder. Raises
    FileExistsError, which names what is, and OSError where nothing can be written, or another process writes there.
    """
    write_tree(tree_of(model), absolute(folder))


def tree_of(model: nnx.Module) -> dict[str, Any]:
    """What `save_weights` writes."""
    tree: dict[str, Any] = {}
    for path, leaf in _leaves(model).items():
        *parents, name = map(str, path)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.asarray(leaf[...])
    return tree


def state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Parameters and batch statistics as PyTorch names and lays them out: what `load_weights` takes, by our own paths.

    Positions stand under every layer that uses them; a layer's are those of the `dcls` package's layer. The arrays are
    copies.
    """
    leaves = _leaves(model)
    return {
        name: np.array(slot.to_torch(np.asarray(leaves[slot.path][...])), order="C")
        for name, slot in _slots(model).items()
    }

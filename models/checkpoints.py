"""Weights in and out: published PyTorch state dicts, loaded strictly from both sides, and Orbax checkpoints.

A model is described by the names and layouts of PyTorch: its own paths with `weight` for kernels and scales,
`running_mean` and `running_var` for batch statistics, and positions listed under every layer that uses them, as the
`dcls` package does. Each family lists the renames that lead from published names to these.
"""

import argparse
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from dcls_jax.freezing import Path, dcls_layers, modules_by_path

M = TypeVar("M", bound=nnx.Module)
V = TypeVar("V")
StateDict = Mapping[str, np.ndarray]

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights before the last ones
_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_SAVED = (nnx.Param, nnx.BatchStat)


class Rename(NamedTuple):
    """What `pattern` matches in a key becomes `name`; with `where`, only in checkpoints with a key that it matches."""

    pattern: str
    name: str
    where: str | None = None


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def load_weights(
    model: M, source: str | PathLike[str] | StateDict, *, swap_positions: bool = False, new_head: bool = False
) -> M:
    """A copy of a model, or of a single layer, with the weights of a checkpoint, on the devices that its own are on.

    source: a .pth, .pth.tar, .pt (needs the torch extra) or .safetensors file, an Orbax folder written by
    `save_weights`, or a flat state dict. Keys may be the original repository's, timm's or the DCLS study's.
    swap_positions: exchange the axes of 2-D positions, for v0 checkpoints trained with `dcls` 0.0.2 to 0.0.5.
    new_head: leave the checkpoint's classifier out; the model keeps its own, if it has one.

    Raises CheckpointError (a ValueError) where the file cannot be read or does not fit: it lists all missing,
    unexpected and misshapen keys, and positions that should be shared but differ. Raises FileNotFoundError.
    """
    if not isinstance(source, Mapping):
        path = pathlib.Path(source).expanduser().absolute()
        if not path.exists():
            raise FileNotFoundError(f"no checkpoint at {source}")
        if path.is_dir():
            return _load_orbax(model, path, new_head=new_head)
        source = read_state_dict(path)
    names = checkpoint_names(source, getattr(model, "checkpoint_renames", ()))
    found = {name: np.asarray(source[key]) for name, key in names.items()}
    if swap_positions:
        found = {name: array[::-1] if name.endswith((".P", ".SIG")) else array for name, array in found.items()}
    slots = _slots(model)
    if new_head:
        slots, found = _without_head(slots), _without_head(found)
    _check(slots, found, names)
    return _with_leaves(model, {slot.path: slot.from_torch(found[name]) for name, slot in slots.items()})


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The flat state dict in a .safetensors file or a PyTorch file, out of its wrappers.

    PyTorch files are unpickled with `weights_only`: of other types only argparse.Namespace and pathlib's POSIX paths,
    which published files carry, are let in. Raises CheckpointError.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return _unwrap(load_file(path), path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"reading {path.name} needs PyTorch: pip install 'dcls_jax[torch]'") from error
    harmless: list[Any] = [argparse.Namespace] + [
        (kind, f"{module}.{kind.__name__}")
        for module in ("pathlib", "pathlib._local")  # Python 3.13 writes the latter
        for kind in (pathlib.PosixPath, pathlib.PurePosixPath)
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is one thing to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is not a PyTorch checkpoint that can be read safely: {reason}") from error
    return {
        key: value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
        for key, value in _unwrap(loaded, path).items()
    }


def _unwrap(loaded: Any, path: pathlib.Path) -> dict[str, Any]:
    while isinstance(loaded, Mapping) and (wrapper := next((w for w in _WRAPPERS if w in loaded), None)):
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(
        getattr(value, "shape", None) is not None for value in loaded.values()
    ):
        raise CheckpointError(f"{path} holds no state dict, bare or under {', '.join(_WRAPPERS)}")
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def checkpoint_names(keys: Iterable[str], renames: Iterable[Rename]) -> dict[str, str]:
    """Our name for each key of a checkpoint, by name; counters of batches are left out. Raises CheckpointError."""
    keys = [key for key in keys if not key.endswith("num_batches_tracked")]
    applicable = [it for it in renames if it.where is None or any(re.search(it.where, key) for key in keys)]
    names: dict[str, str] = {}
    for key in keys:
        name = key
        for rename in applicable:
            name = re.sub(rename.pattern, rename.name, name)
        if name in names:
            raise CheckpointError(f"checkpoint keys {names[name]} and {key} both name {name}")
        names[name] = key
    return names


@dataclass(frozen=True)
class _Slot:
    """A place for one array of a checkpoint: where it goes and how PyTorch lays it out."""

    path: Path
    shape: tuple[int, ...]
    torch_axes: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.torch_axes)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is PyTorch's, or that of the 1x1 convolution which does the same."""
        spatial = shape[len(self.shape) :]
        return shape[: len(self.shape)] == self.torch_shape and all(size == 1 for size in spatial)

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
        slot = _Slot(path, leaf.shape, axes)
        for owner in users.get(id(modules[tuple(parents)]), [tuple(parents)]):
            slots[".".join(map(str, (*owner, _TORCH_LEAVES.get(name, name))))] = slot
    return slots


def _check(slots: Mapping[str, _Slot], found: StateDict, keys: Mapping[str, str]) -> None:
    """Raise CheckpointError unless what was found is what is wanted; `keys` are the checkpoint's own for our names."""

    def called(name: str) -> str:
        key = keys.get(name, name)
        return name if key == name else f"{key} ({name})"

    problems = [f"missing: {name}" for name in slots.keys() - found.keys()]
    problems += [f"unexpected: {called(name)}" for name in found.keys() - slots.keys()]
    first: dict[Path, str] = {}
    for name in sorted(slots.keys() & found.keys()):
        slot, shape = slots[name], found[name].shape
        if not slot.fits(shape):
            problems.append(f"misshapen: {called(name)} has shape {shape}, expected {slot.torch_shape}")
            continue
        other = first.setdefault(slot.path, name)
        if other != name and not np.array_equal(found[name], found[other]):
            problems.append(f"unequal: {called(other)} and {called(name)} should be one shared array")
    if problems:
        raise CheckpointError("the checkpoint does not fit the model\n  " + "\n  ".join(sorted(problems)))


def _without_head(by_name: dict[str, V]) -> dict[str, V]:
    return {name: value for name, value in by_name.items() if not name.startswith("fc.")}


def _with_leaves(model: M, leaves: Mapping[Path, np.ndarray]) -> M:
    graphdef, state = nnx.split(model)

    def value(path: Path, leaf: nnx.Variable) -> Array:
        sharding = getattr(leaf.get_value(), "sharding", None)
        array = jnp.asarray(leaves[path], leaf.dtype) if path in leaves else jnp.copy(leaf.get_value())
        return jax.device_put(array, sharding) if isinstance(sharding, NamedSharding) else array

    flat = {path: leaf.replace(value(path, leaf)) for path, leaf in nnx.to_flat_state(state)}
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def save_weights(model: nnx.Module, folder: str | PathLike[str]) -> None:
    """Write parameters and batch statistics as an Orbax checkpoint: nested dicts of numpy arrays, by our own names.

    What stands at `folder` is replaced only once the new checkpoint is complete.
    """
    from orbax.checkpoint import v1 as ocp

    tree: dict[str, Any] = {}
    for path, leaf in _leaves(model).items():
        *parents, name = map(str, path)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.asarray(leaf[...])
    ocp.save(pathlib.Path(folder).expanduser().absolute(), tree, overwrite=True)


def state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Parameters and batch statistics as PyTorch names and lays them out: what `load_weights` takes, by our own paths.

    Positions stand under every layer that uses them; a layer's are those of the `dcls` package's layer.
    """
    leaves = _leaves(model)
    return {name: slot.to_torch(np.asarray(leaves[slot.path][...])) for name, slot in _slots(model).items()}


def _load_orbax(model: M, folder: pathlib.Path, *, new_head: bool) -> M:
    from orbax.checkpoint import v1 as ocp

    try:
        tree = ocp.load(folder)
    except Exception as error:  # orbax raises many kinds for what is one thing to the user
        raise CheckpointError(f"{folder} is not a readable Orbax checkpoint: {error}") from error
    found = {".".join(path): np.asarray(leaf) for path, leaf in _flat(tree)}
    leaves = _leaves(model)
    slots = {
        ".".join(map(str, path)): _Slot(path, leaf.shape, tuple(range(leaf.ndim))) for path, leaf in leaves.items()
    }
    if new_head:
        slots, found = _without_head(slots), _without_head(found)
    _check(slots, found, {})
    return _with_leaves(model, {slot.path: found[key] for key, slot in slots.items()})


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _flat(node, (*path, name))
        else:
            yield (*path, name), node

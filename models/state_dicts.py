"""State dicts as they are found, in files of PyTorch and safetensors and in folders of model hubs, as numpy arrays."""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dcls_jax.errors import reason

_WRAPPERS = (  # averaged weights before the last ones
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
)
_NO_WEIGHTS = {  # by how such files begin
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself, with git lfs pull",
    b"\x1f\x8b": "compressed by gzip; uncompress it first",
    b"<": "a web page or other markup; download the file itself",
}
_NESTED = 5  # wrappers at most; a pickled dict may hold itself
HUB = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SAFETENSORS: dict[str, Any] = {
    "BOOL": np.bool_,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    **{f"F{8 * size}": f"f{size}" for size in (2, 4, 8)},
    **{f"I{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def hub_file(folder: pathlib.Path) -> pathlib.Path | None:
    """The weights in a folder as model hubs have it: one file, or the index of several."""
    return next((folder / name for name in HUB if (folder / name).exists()), None)


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The flat state dict in a .safetensors file, a PyTorch file or the files that an .index.json lists.

    PyTorch files are unpickled with `weights_only`: of other types only plain ones that do nothing are let in (see
    `_harmless`). Raises CheckpointError, and OSError where a file cannot be opened.
    """
    return flat_state_dict((_read_shards if path.name.endswith(".index.json") else _read)(path), str(path))


def flat_state_dict(loaded: Any, source: str) -> dict[str, np.ndarray]:
    """A state dict out of its wrappers, each value as a numpy array. Raises CheckpointError, which names `source`."""
    for _ in range(_NESTED):
        loaded = _inner(loaded) or loaded
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{source} is a {_type(loaded)}, expected arrays by name")
    strange = [key for key, value in loaded.items() if not _has_shape(value)]
    if loaded and len(strange) == len(loaded):
        has = ", ".join(shortened(map(str, loaded), 3))
        raise CheckpointError(f"{source} holds no state dict, bare or under {', '.join(_WRAPPERS)}; it has {has}")
    if strange:
        raise CheckpointError(f"{source} holds a {_type(loaded[strange[0]])} as {strange[0]}, expected an array")
    for key in loaded:
        if not isinstance(key, str):
            raise CheckpointError(f"{source} has the key {key!r} ({_type(key)}), expected names (str)")
    return {key: _array(value, key, source) for key, value in loaded.items()}


def _inner(loaded: Any) -> Mapping[str, Any] | None:
    if not isinstance(loaded, Mapping):
        return None
    inner = (loaded.get(wrapper) for wrapper in _WRAPPERS)
    return next((it for it in inner if isinstance(it, Mapping) and it), None)


def _has_shape(value: Any) -> bool:
    try:
        return getattr(value, "shape", None) is not None
    except Exception:  # of a tensor that has none yet, which `_array` names
        return True


def _array(value: Any, key: str, source: str) -> np.ndarray:
    torch = sys.modules.get("torch")
    try:
        return np.asarray(_plain(value) if torch and isinstance(value, torch.Tensor) else value)
    except Exception as error:  # torch and numpy raise many kinds
        raise CheckpointError(f"{source}: {key} cannot be read as an array: {reason(error)}") from error


def _plain(tensor: Any) -> Any:
    """A dense tensor on the CPU that needs no gradient, of a dtype that numpy has."""
    import torch

    if tensor.is_meta:
        raise TypeError("it is on the device meta, which keeps no values")
    tensor = tensor.detach().cpu()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


def _read(path: pathlib.Path) -> Any:
    start = _checked_start(path)
    # Of a safetensors file of any name the length of a JSON object is the first number.
    return _read_safetensors(path) if path.suffix == ".safetensors" or start[8:9] == b"{" else _read_torch(path)


def _checked_start(path: pathlib.Path) -> bytes:
    """The first bytes of a file. Raises CheckpointError, which says what it is, if that is known to be none."""
    if not path.is_file():  # to open a pipe is to wait for who writes to it
        raise CheckpointError(f"{path} is not a regular file")
    with path.open("rb") as file:
        start = file.read(50)
    if not start:
        raise CheckpointError(f"{path} is empty")
    if what := next((what for first, what in _NO_WEIGHTS.items() if start.startswith(first)), None):
        raise CheckpointError(f"{path} is {what}")
    return start


def _read_shards(index: pathlib.Path) -> dict[str, Any]:
    _checked_start(index)
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        shards = [index.with_name(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of weights: expected JSON with a weight_map of keys") from error
    arrays: dict[str, Any] = {}
    for shard in shards:
        if not shard.exists():
            raise CheckpointError(f"{index} lists {shard.name}, which is not there")
        for key, value in _read(shard).items():
            if key in arrays:
                raise CheckpointError(f"{index} lists files that both have the key {key}, such as {shard.name}")
            arrays[key] = value
    return arrays


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {reason(error)}") from error
    arrays = {}
    for key, tensor in tensors:
        if tensor["dtype"] not in _SAFETENSORS:
            raise CheckpointError(f"{path}: {key} has the dtype {tensor['dtype']}, expected {', '.join(_SAFETENSORS)}")
        dtype = np.dtype(_SAFETENSORS[tensor["dtype"]]).newbyteorder("<")
        arrays[key] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays


def _read_torch(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"reading {path.name} needs PyTorch: pip install 'dcls_jax[torch]'") from error
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is one thing to the user
        why = _refusal(str(error)) or reason(error)
        raise CheckpointError(f"{path} is not a PyTorch checkpoint that can be read safely: {why}") from error


def _harmless() -> list[Any]:
    """What published files carry beside the weights; paths of either system become pure ones, good on both."""
    paths = [
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")  # Python 3.13 writes the latter
        for pure in (pathlib.PurePosixPath, pathlib.PureWindowsPath)
        for name in (pure.__name__, pure.__name__.removeprefix("Pure"))
    ]
    functions: list[Any] = [
        np.float64(0).__reduce__()[0],
        np.zeros(0).__reduce__()[0],
    ]  # that make scalars and empty arrays
    numpy_functions = [
        (function, f"{module}.multiarray.{function.__name__}")
        for module in ("numpy.core", "numpy._core")  # NumPy 2 writes the latter
        for function in functions
    ]
    numpy_types = [np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
    plain = [
        argparse.Namespace,
        (_default_dict, "collections.defaultdict"),
        dict,
        list,
        set,
        tuple,
        str,
        int,
        float,
        bool,
    ]
    return [*plain, *paths, *numpy_types, *numpy_functions]


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}  # torch fills no others


def _refusal(message: str) -> str | None:
    """What torch's refusal to unpickle is about, without its advice to unpickle all the same."""
    if refused := re.search(r"GLOBAL (\S+)", message):
        return f"it holds {refused[1]}, which is not unpickled; where it was made, save its state_dict()"
    if "TorchScript" in message:
        return "it is a TorchScript archive; where it was made, save its state_dict()"
    found = re.search(r"WeightsUnpickler error:\s*(.+)", message)
    return found and found[1]


def shortened(lines: Iterable[str], at_most: int = 10) -> list[str]:
    """The first lines, and how many more there are."""
    lines = list(lines)
    more = len(lines) - at_most
    return [*lines[:at_most], f"and {more} more"] if more > 0 else lines


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")

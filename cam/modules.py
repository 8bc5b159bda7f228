"""Any Flax module as a model, cut at any of its submodules, as it is: what hooks are for in PyTorch."""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from dcls_jax.cam.model import CutError, Head, versions
from dcls_jax.cam.pytree import pytree
from dcls_jax.freezing import modules_by_path, set_module

Replace = Callable[[Any], Any]  # the output of a submodule -> what the module sees instead


@pytree
@dataclass(frozen=True)
class ModuleModel:
    """A Flax module whose layers are the paths of its submodules: see `from_module`."""

    variables: Any  # the NNX module itself, or the variables of a Linen module
    module: linen.Module | None = field(metadata={"static": True})
    prefix_tokens: int = field(metadata={"static": True})
    grid: tuple[int, ...] | None = field(metadata={"static": True})
    arguments: tuple[tuple[str, Any], ...] = field(metadata={"static": True})

    def split(self, images: Array, layer: str | None, inputs: tuple[Any, ...]) -> tuple[Array, Head]:
        """The output of a submodule, and the module with another output in its place."""
        if layer is None:
            raise CutError("layer is needed: the path of a submodule, as a Flax module has no features of its own")
        found: list[Any] = []

        def note(output: Any) -> Any:
            found.append(output)
            return output

        self._run(images, inputs, layer, note)
        if len(found) != 1 or not isinstance(found[0], Array):
            what = f"called {len(found)} times" if len(found) != 1 else f"gives a {type(found[0]).__name__}"
            raise CutError(f"layer (={layer!r}) {what}, expected one call that gives an array (B, *space, channels)")

        def head(a: Array) -> Any:
            def other(output: Array) -> Array:
                if not self._has_tokens(output):
                    return a
                tokens = a.reshape(len(a), -1, a.shape[-1])
                return jnp.concatenate([output[:, : self.prefix_tokens], tokens], axis=1)

            return self._run(versions(images, len(a)), versions(inputs, len(a)), layer, other)

        if not self._has_tokens(found[0]):
            return found[0], head
        return tokens_to_grid(found[0], prefix_tokens=self.prefix_tokens, grid=self.grid), head

    def output(self, images: Array, inputs: tuple[Any, ...]) -> Any:
        """The output of the whole module."""
        return self._run(images, inputs, None, lambda output: output)

    def _has_tokens(self, output: Array) -> bool:
        return output.ndim == 3 and (self.prefix_tokens > 0 or self.grid is not None)

    def _run(self, images: Array, inputs: tuple[Any, ...], layer: str | None, replace: Replace) -> Any:
        run = _run_nnx if self.module is None else partial(_run_linen, self.module)
        return run(self.variables, layer, replace, images, *inputs, **dict(self.arguments))


def from_module(
    module: Any,
    variables: Any = None,
    *,
    prefix_tokens: int = 0,
    grid: tuple[int, ...] | None = None,
    **arguments: Any,
) -> ModuleModel:
    """A model of a Flax module, images (B, *size, C) -> output (B, ...), whose layers are the paths of its submodules.

    module: an NNX module, or a Linen one with its `variables`. A `layer` is a path such as "blocks.3.mlp"; its output
    (B, *space, channels) is explained, and what else the module computes from the image, such as the other branch of a
    skip connection, stays as it is. prefix_tokens: class and register tokens before those of the picture, in layers
    that give tokens (B, prefix_tokens + n, channels); grid: their rows and columns, a square unless given. arguments:
    further ones of the call, such as train=False. Raises ValueError, when used, for a layer that is not there, is
    called other than once, or gives something else than an array.
    """
    if isinstance(module, linen.Module):
        if variables is None:
            raise CutError("variables are needed, as a Linen module holds none")
    elif not isinstance(module, nnx.Module):
        raise CutError(f"module (a {type(module).__name__}) must be a Flax module, NNX or Linen")
    known, static = (variables, module) if isinstance(module, linen.Module) else (module, None)
    return ModuleModel(known, static, prefix_tokens, grid, tuple(sorted(arguments.items())))


def tokens_to_grid(tokens: Array, *, prefix_tokens: int = 0, grid: tuple[int, ...] | None = None) -> Array:
    """Tokens of a picture (B, prefix_tokens + n, C) as it lies in the picture, (B, h, w, C), without those before.

    grid: (h, w), or the axes of a volume; a square unless given. Raises ValueError where the tokens do not fill it.
    """
    batch, length, channels = tokens.shape
    count = length - prefix_tokens
    side = math.isqrt(max(0, count))
    sides = (side, side) if grid is None else tuple(grid)
    if count < 1 or math.prod(sides) != count:
        raise CutError(f"tokens have shape {tokens.shape}, expected {prefix_tokens} and a grid {sides} along axis 1")
    return tokens[:, prefix_tokens:].reshape(batch, *sides, channels)


class _Hook:
    """Stands in the place of a submodule."""

    def __init__(self, original: Any, replace: Replace):
        self._original, self._replace = original, replace

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._replace(self._original(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _run_nnx(module: nnx.Module, layer: str | None, replace: Replace, *arguments: Any, **options: Any) -> Any:
    module = nnx.merge(*nnx.split(module))  # the caller's keeps its submodules
    if layer is not None:
        parts = {".".join(map(str, path)): (path, part) for path, part in modules_by_path(module).items() if path}
        _check_layer(layer, parts)
        path, part = parts[layer]
        set_module(module, path, _Hook(part, replace))  # type: ignore[arg-type]
    return module(*arguments, **options)  # type: ignore[operator]


def _run_linen(
    module: linen.Module, variables: Any, layer: str | None, replace: Replace, *arguments: Any, **options: Any
) -> Any:
    seen: set[str] = set()

    def intercept(call: Any, given: Any, keywords: Any, context: Any) -> Any:
        output = call(*given, **keywords)
        path = ".".join(context.module.path)
        if context.method_name != "__call__" or not path:
            return output
        seen.add(path)
        return replace(output) if path == layer else output

    with linen.intercept_methods(intercept):
        output = module.apply(variables, *arguments, **options)
    if layer is not None:
        _check_layer(layer, seen)
    return output


def _check_layer(layer: str, names: Iterable[str]) -> None:
    names = list(names)
    if layer not in names:
        nearest = difflib.get_close_matches(layer, names, n=5, cutoff=0)
        raise CutError(f"no submodule {layer!r}; the nearest are {', '.join(nearest)}")

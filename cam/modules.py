"""Any Flax module as a model, cut at any of its submodules, as it is: what hooks are for in PyTorch."""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn

from dcls_jax.cam.interpret import evaluate, inner_jaxprs, interpret, is_call
from dcls_jax.cam.model import CutError, Head, versions
from dcls_jax.cam.pytree import pytree
from dcls_jax.modules import modules_by_path

Replace = Callable[[Array], Array]  # the output of a submodule -> what the module sees instead


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
        found: list[Array] = []

        def note(output: Array) -> Array:
            found.append(output)
            return output

        def head(a: Array) -> Any:
            def other(output: Array) -> Array:
                instead = a.astype(output.dtype)
                if not self._has_tokens(output):
                    return instead
                tokens = instead.reshape(len(a), -1, a.shape[-1])
                return jnp.concatenate([output[:, : self.prefix_tokens], tokens], axis=1)

            return self._replaced(versions(images, len(a)), versions(inputs, len(a)), layer, other)

        self._replaced(images, inputs, layer, note)
        if not self._has_tokens(found[0]):
            return found[0], head
        return tokens_to_grid(found[0], prefix_tokens=self.prefix_tokens, grid=self.grid), head

    def output(self, images: Array, inputs: tuple[Any, ...]) -> Any:
        """The output of the whole module."""
        return self._run(images, inputs)

    def _has_tokens(self, output: Array) -> bool:
        return output.ndim == 3 and (self.prefix_tokens > 0 or self.grid is not None)

    def _replaced(self, images: Array, inputs: tuple[Any, ...], layer: str, replace: Replace) -> Any:
        """The output of the module where it sees another output of a layer."""

        def run(images: Array, inputs: tuple[Any, ...]) -> Any:
            return self._run(images, inputs, layer)

        # Not replaced at the call itself: its output may belong to the trace of a `jax.jit` or `jax.checkpoint` inside.
        program, shapes = jax.make_jaxpr(run, return_shape=True)(images, inputs)
        calls = _count_marks(program.jaxpr, layer)
        if calls != 1:
            raise CutError(f"layer (={layer!r}) is called {calls} times by __call__, expected one such call")
        arguments = jax.tree.leaves((images, inputs))
        outputs = interpret(program, arguments, partial(_at_mark, layer, replace), lift=lambda constant: constant)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    def _run(self, images: Array, inputs: tuple[Any, ...], layer: str | None = None) -> Any:
        """The output of the module, in whose program the output of the layer is marked."""
        run = _run_nnx if self.module is None else partial(_run_linen, self.module)
        return run(self.variables, layer, images, *inputs, **dict(self.arguments))


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
    that give tokens (B, prefix_tokens + n, channels); grid: their rows and columns, for prefix tokens alone a square.
    arguments: further ones of the call, such as train=False; NNX modules run in evaluation mode anyhow.

    A layer may be under `jax.checkpoint`, `jax.jit` and their like in Flax, but not in a loop over layers, such as
    `nnx.scan`, nor under `linen.jit`. Raises ValueError for arguments that are not hashable and, when used, for a layer
    that is not there, whose `__call__` is called other than once, or that gives something else than an array.
    """
    if isinstance(module, linen.Module):
        if variables is None:
            raise CutError("variables are needed, as a Linen module holds none")
    elif not isinstance(module, nnx.Module):
        raise CutError(f"module (a {type(module).__name__}) must be a Flax module, NNX or Linen")
    for name, value in arguments.items():
        if getattr(type(value), "__hash__", None) is None or isinstance(value, Array):
            kind = type(value).__name__
            raise CutError(f"{name} (a {kind}) must be hashable; explain((images, more), ...) takes arrays (B, ...)")
    known, static = (variables, module) if isinstance(module, linen.Module) else (module, None)
    return ModuleModel(
        known, static, prefix_tokens, None if grid is None else tuple(grid), tuple(sorted(arguments.items()))
    )


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


def _run_nnx(module: nnx.Module, layer: str | None, *arguments: Any, **options: Any) -> Any:
    module = nnx.merge(*nnx.split(module), copy=True)  # the caller's stays as it is
    module.eval()  # flags of its own too, beside those of Flax's layers
    if layer is not None:
        parts = {".".join(map(str, path)): part for path, part in modules_by_path(module).items() if path}
        _check_layer(layer, parts)
        object.__setattr__(parts[layer], "__class__", _marking(type(parts[layer]), layer))
    return module(*arguments, **options)  # type: ignore[operator]


@cache
def _marking(kind: Any, layer: str) -> type:
    """The class whose call marks its output: one for all runs, so that what is compiled inside stays known."""

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return _marked(kind.__call__(self, *arguments, **options), layer)

    return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _run_linen(module: linen.Module, variables: Any, layer: str | None, *arguments: Any, **options: Any) -> Any:
    if layer is None:
        return module.apply(variables, *arguments, **options)
    seen: set[str] = set()

    def intercept(call: Any, given: Any, keywords: Any, context: Any) -> Any:
        output, path = call(*given, **keywords), ".".join(context.module.path)
        if path:
            seen.add(path)
        return _marked(output, layer) if path == layer and context.method_name == "__call__" else output

    with linen.intercept_methods(intercept):
        output = module.apply(variables, *arguments, **options)
    _check_layer(layer, seen)
    return output


def _mark(layer: str) -> str:
    return f"dcls_jax.cam {layer}"


def _marked(output: Any, layer: str) -> Array:
    if not isinstance(output, Array):
        kind = type(output).__name__
        raise CutError(f"layer (={layer!r}) gives a {kind}, expected an array (B, *space, channels)")
    return checkpoint_name(output, _mark(layer))


def _is_marked(eqn: JaxprEqn, layer: str) -> bool:
    return eqn.primitive.name == "name" and eqn.params["name"] == _mark(layer)


def _count_marks(jaxpr: Jaxpr, layer: str) -> int:
    inside = (_count_marks(inner, layer) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn))
    return sum(_is_marked(eqn, layer) for eqn in jaxpr.eqns) + sum(inside)


def _at_mark(layer: str, replace: Replace, eqn: JaxprEqn, values: list[Any]) -> Sequence[Any] | None:
    if _is_marked(eqn, layer):
        return [replace(values[0])]
    if not any(_count_marks(inner, layer) for inner in inner_jaxprs(eqn)):
        return evaluate(eqn, values)
    if not is_call(eqn):
        raise CutError(f"layer (={layer!r}) is called inside {eqn.primitive.name}, which cannot be cut")
    return None


def _check_layer(layer: str, names: Iterable[str]) -> None:
    names = list(names)
    if layer not in names:
        nearest = difflib.get_close_matches(layer, names, n=5, cutoff=0)
        raise CutError(f"no submodule {layer!r}; the nearest are {', '.join(nearest) or 'none'}")

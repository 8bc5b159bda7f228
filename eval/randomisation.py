"""Models whose layers are random again, one after the other, by the initialisers of the model itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dcls_jax.freezing import Path, dcls_layers
from dcls_jax.models import Backbone

M = TypeVar("M", bound=nnx.Module)
Order = Literal["cascading", "independent"]
Layers = Mapping[str, Sequence[Path]]  # the paths of parameters and statistics by layer, from the head down

_RANDOMISED = (nnx.Param, nnx.BatchStat)


def randomise(
    model: M, *, order: Order = "cascading", key: Array, build: Callable[[nnx.Rngs], M] | None = None
) -> Iterator[tuple[str, M]]:
    """Copies of a model, never the model itself, in which more and more, or other, layers are random: (layer, copy).

    order: "cascading", that layer and all before it, from the head down; "independent", that layer alone.
    key: of all random numbers; a layer has the same ones in every copy. build: makes such a model of `nnx.Rngs`; unless
    given, models of this package are built from their own config. Its initialisers decide, of parameters and of batch
    statistics: a block whose scale starts at 0, as in ResNet, is its shortcut again.
    Layers are those at which the model can be cut, after "head", all that follows "features". Positions that a stage
    shares are a layer, "stages.0.positions", after the last one that uses them. Of other modules, layers are what they
    hold, such as "blocks.2" and "fc", in the opposite order of their definition.
    Raises ValueError for another order, and for a model that is not what `build` makes, such as a frozen or fused one.
    Adebayo et al. 2018, arXiv 1810.03292, section 3.
    """
    random, layers = random_twin(model, key, build)
    steps = schedule(len(layers), order)
    return ((name, mixture(model, random, layers, chosen)) for name, chosen in zip(layers, steps, strict=True))


def schedule(layers: int, order: Order) -> np.ndarray:
    """Which layers are random at each step: (layers, layers) bool. Raises ValueError for another order."""
    if order not in get_args(Order):
        raise ValueError(f"order (={order!r}) must be one of {', '.join(get_args(Order))}")
    alone = np.eye(layers, dtype=bool)
    return alone if order == "independent" else np.tril(np.ones_like(alone))


def layers_of(model: nnx.Module) -> dict[str, list[Path]]:
    """What is random in each layer, from the head down; see `randomise`.

    A model that is none of this package's should be as its constructor made it: a copy knows no order of definition.
    """
    paths = [*_leaves(model)]
    upwards = model.chain if isinstance(model, Backbone) else _parts(model, paths)
    order = ["head", *reversed(upwards)]
    for owner, lowest in _shared_positions(model, upwards).items():
        order.insert(order.index(lowest) + 1, owner)
    found: dict[str, list[Path]] = {name: [] for name in order}
    for path in paths:
        found[next((name for name in order if _is_in(path, name)), "head")].append(path)
    return {name: those for name, those in found.items() if those}


def _parts(model: nnx.Module, paths: Sequence[Path]) -> list[str]:
    """What a module holds, in the order of definition, lists in parts."""
    held = [*vars(model)]
    listed = (nnx.List, list, tuple)
    names = [_dotted(path[: 2 if isinstance(getattr(model, str(path[0])), listed) else 1]) for path in paths]
    return sorted(dict.fromkeys(names), key=lambda name: held.index(name.partition(".")[0]))


def _shared_positions(model: nnx.Module, upwards: Sequence[str]) -> dict[str, str]:
    """The lowest layer that uses positions that are in no layer, by the path of these."""
    users: dict[str, list[int]] = {}
    for layer, _, owner in dcls_layers(model):
        if not any(_is_in(owner, name) for name in upwards):
            users.setdefault(_dotted(owner), []).extend(i for i, name in enumerate(upwards) if _is_in(layer, name))
    return {owner: upwards[min(indices)] for owner, indices in users.items()}


def _is_in(path: Path, name: str) -> bool:
    return f"{_dotted(path)}.".startswith(f"{name}.")


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def random_twin(model: M, key: Array, build: Callable[[nnx.Rngs], M] | None = None) -> tuple[M, dict[str, list[Path]]]:
    """A random model of the same structure and dtypes, where the model is, and its layers.

    Raises ValueError as `randomise`.
    """
    built = (_own_build(model) if build is None else build)(nnx.Rngs(key))
    check_alike(model, built, "what build makes")
    graph, state = nnx.split(model)
    values = _leaves(built)

    def fresh(path: Path, leaf: nnx.Variable) -> nnx.Variable:
        if path not in values:
            return leaf
        return leaf.replace(jax.device_put(values[path].get_value().astype(leaf.dtype), leaf.get_value().sharding))

    twin = nnx.merge(graph, nnx.from_flat_state((path, fresh(path, leaf)) for path, leaf in nnx.to_flat_state(state)))
    return twin, layers_of(built)


def _own_build(model: M) -> Callable[[nnx.Rngs], M]:
    if not isinstance(model, Backbone):
        raise ValueError(f"model (a {type(model).__name__}) is none of this package's: give build, rngs -> model")
    family: Any = type(model)
    config: Any = vars(model)["config"]
    return lambda rngs: family(config, rngs=rngs)


def check_alike(model: nnx.Module, other: nnx.Module, called: str) -> None:
    """Raise ValueError for models whose parameters have other names or shapes."""
    here, there = ({_dotted(path): leaf.shape for path, leaf in _leaves(m).items()} for m in (model, other))
    for name in (*here, *there):
        if here.get(name) != there.get(name):
            shapes = f"{here.get(name, 'not there')} in model, {there.get(name, 'not there')} in {called}"
            raise ValueError(f"model and {called} differ, first in {name}: {shapes}")


def mixture(model: M, other: M, layers: Layers, chosen: Sequence[Any] | np.ndarray | Array) -> M:
    """The model with the chosen layers (layers,), bool, of another one of its structure. Jit and vmap at will."""
    graph, state = nnx.split(model)
    values = _leaves(other)
    taken = {path: choice for choice, paths in zip(chosen, layers.values(), strict=True) for path in paths}

    def mixed(path: Path, leaf: nnx.Variable) -> nnx.Variable:
        if path not in taken:
            return leaf
        return leaf.replace(jnp.where(taken[path], values[path].get_value(), leaf.get_value()))

    return nnx.merge(graph, nnx.from_flat_state((path, mixed(path, leaf)) for path, leaf in nnx.to_flat_state(state)))


def _leaves(model: nnx.Module) -> dict[Path, nnx.Variable]:
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Any(*_RANDOMISED))))

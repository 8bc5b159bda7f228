"""Optimisers in which positions learn faster than weights and do not decay.

The recipe is ConvNeXt-dcls's (github.com/K-H-Ismail/ConvNeXt-dcls, optim_factory.py and engine.py): positions learn
five times faster than the rest and are clamped after every step.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from dcls_jax.layers import POSITIONS
from dcls_jax.training.paths import Path, dotted, listed, path_of, paths_in

Rule = Literal["adamw", "lamb"]
RULES: tuple[Rule, ...] = get_args(Rule)
_EPSILON: dict[Rule, float] = {"adamw": 1e-8, "lamb": 1e-6}


def position_labels(params: Any) -> Any:
    """Labels every leaf of a parameter tree "positions" or "rest", by its path.

    Positions are the leaves under a key `P`, and under `SIG`: sigmas are lengths in the same cells.
    """
    return _by_path(lambda path: "positions" if _is_position(path) else "rest", params)


def optimiser(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    position_factor: float = 5.0,
    *,
    rule: Rule = "adamw",
    layer_decay: float = 1.0,
    layer_of: Callable[[Path], int] | None = None,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """AdamW or timm's LAMB, in which positions learn `position_factor` times faster and only weights decay.

    Neither positions nor vectors (biases, normalisation, layer scale) decay.
    learning_rate: a number or an optax schedule. weight_decay: times the learning rate, each step.
    rule: "adamw", or "lamb" as timm has it: gradients of all parameters together are clipped to norm 1, and the trust
    ratio scales only what decays (arXiv 1904.00962; timm/optim/lamb.py).
    layer_decay, layer_of: every layer learns `layer_decay` times as fast as the next one, the last as fast as said;
    layer_of, from a leaf's path to the index of its layer, as `layers_in_order` makes it, says which layer is which.
    Positions stay `position_factor` times faster than the weights of their layer.
    frozen: patterns of paths, as "stem" or "stages.[01].*.norm", with what is below them, that do not learn at all.
    Raises ValueError for a value out of its range and, from `init`, for a pattern of `frozen` that nothing matches.
    """
    if rule not in RULES:
        raise ValueError(f"rule (={rule!r}) must be one of {', '.join(RULES)}")
    for name, value in {"weight_decay": weight_decay, "position_factor": position_factor}.items():
        if not value >= 0:
            raise ValueError(f"{name} (={value}) must not be negative")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay (={layer_decay}) must be above 0 and at most 1")
    if layer_decay < 1 and layer_of is None:
        raise ValueError(f"layer_decay (={layer_decay}) needs layer_of, which says what the layers are")

    def decays(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda entries, leaf: weight_decay > 0 and jnp.ndim(leaf) > 1 and not _is_position(path_of(entries)), params
        )

    adam = [optax.scale_by_adam(eps=_EPSILON[rule]), optax.add_decayed_weights(weight_decay, decays)]
    if rule == "lamb":
        # Clipped here, where all parameters are together, and not each group by its own norm.
        adam = [optax.clip_by_global_norm(1.0), *adam, optax.masked(optax.scale_by_trust_ratio(), decays)]
    learned = optax.chain(*adam, optax.scale_by_learning_rate(learning_rate))
    if frozen:
        learned = optax.partition({"learns": learned, "frozen": optax.set_to_zero()}, _frozen_labels(frozen))

    def factors(params: Any) -> Any:
        last = max(map(layer_of, paths_in(params)), default=0) if layer_of else 0

        def factor(path: Path) -> float:
            of_layer = layer_decay ** (last - layer_of(path)) if layer_of else 1.0
            return of_layer * (position_factor if _is_position(path) else 1.0)

        return _by_path(factor, params)

    scaled = optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: f * u, updates, factors(updates)))
    return optax.chain(learned, scaled)


def layers_in_order(names: Sequence[str]) -> Callable[[Path], int]:
    """What `optimiser` takes as `layer_of`, from the names of the layers of a model from first to last.

    names: dotted paths, as "stem", "stages.0.blocks.0". A leaf belongs to the layer whose name its path goes along with
    furthest: the one that it is in or, shared by several ("stages.0.positions"), the first of them. What goes along
    with none, as a classifier, comes after the last.
    """
    layers = [tuple(name.split(".")) for name in names]

    def together(layer: tuple[str, ...], path: Path) -> int:
        steps = zip(layer, path, strict=False)
        return len(list(takewhile(lambda step: step[0] == str(step[1]), steps)))

    def layer_of(path: Path) -> int:
        along = [together(layer, path) for layer in layers]
        furthest = max(along, default=0)
        return along.index(furthest) if furthest else len(layers)

    return layer_of


def _is_position(path: Path) -> bool:
    return not set(path).isdisjoint(POSITIONS)


def _by_path(function: Callable[[Path], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda entries, _: function(path_of(entries)), tree)


def _frozen_labels(patterns: Sequence[str]) -> Callable[[Any], Any]:
    def matches(path: Path, pattern: str) -> bool:
        return any(fnmatchcase(dotted(path), each) for each in (pattern, f"{pattern}.*"))

    def labels(params: Any) -> Any:
        paths = paths_in(params)
        for pattern in patterns:
            if not any(matches(path, pattern) for path in paths):
                raise ValueError(f"frozen: {pattern!r} matches none of {listed([dotted(path) for path in paths])}")
        return _by_path(lambda path: "frozen" if any(matches(path, p) for p in patterns) else "learns", params)

    return labels

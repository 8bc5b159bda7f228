"""Models with weights that are the same on every machine, and what they give in float64 on a CPU."""

import math
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcls_jax import freeze
from dcls_jax.cam import activations_and_gradients, grad_cam
from dcls_jax.models import Backbone, create_model, list_models
from dcls_jax.models.create import MODELS

REFERENCES = Path(__file__).with_name("references.npz")
SEED = 7
FAMILIES = "convnext_tiny", "caformer_s18", "resnet50", "fastvit_sa24"
SMALL = {"depths": (1, 1, 1, 1), "dims": (32, 32, 64, 64)}

# Uniform between these, where a path has such a name: residual branches add a little, and no value is 0, 1 or tiny,
# so that a fault anywhere reaches the map.
BETWEEN = {"var": (2, 4), "layer_scale": (0.1, 0.3), "gamma": (0.2, 0.4), "res_scale": (0.4, 0.8)}


@cache
def known_model(
    name: str, dcls: bool, *, dtype: Any = None, wide: bool = False, small: bool = False, frozen: bool = True
) -> tuple[Backbone, float]:
    """A model and the sum of its weights' magnitudes. wide: parameters in float64."""
    config: dict[str, Any] = SMALL | ({"dims": (16, 16, 32, 32)} if name == "resnet50" else {}) if small else {}
    shapes = nnx.eval_shape(lambda: create_model(name, dcls=dcls, dtype=dtype, **config))
    limit = MODELS[name][1].dcls.dilated_kernel_size // 2
    graph, state = nnx.split(shapes)
    drawn = {path: _values(tuple(map(str, path)), leaf.shape, limit) for path, leaf in nnx.to_flat_state(state)}
    kept_in = jnp.float64 if wide else jnp.float32
    leaves = [(path, leaf.replace(jnp.asarray(drawn[path], kept_in))) for path, leaf in nnx.to_flat_state(state)]
    model = nnx.merge(graph, nnx.from_flat_state(leaves))
    model.eval()
    total = sum(float(np.abs(values, dtype=np.float64).sum()) for values in drawn.values())
    return (freeze(model) if frozen else model), total


@cache
def _values(path: tuple[str, ...], shape: tuple[int, ...], limit: int) -> np.ndarray:
    """Drawn from a generator of the path's own, so that no other parameter changes them."""
    generator = np.random.default_rng([SEED, zlib.crc32("/".join(path).encode())])

    def uniform(low: float, high: float) -> np.ndarray:
        return generator.uniform(low, high, shape).astype(np.float32)

    if path[-1] == "P":
        return uniform(-limit, limit)
    for name, (low, high) in BETWEEN.items():
        if name == path[-1] or (name != "var" and any(name in part for part in path)):
            return uniform(low, high)
    if path[-1] == "scale":
        return uniform(0.2, 0.4) if "bn3" in path else uniform(0.7, 1.3)
    normal = generator.standard_normal(shape, np.float32)
    if len(shape) < 2:
        return 0.1 * normal
    fan_in = math.prod(shape[1:] if path[-1] == "weight" else shape[:-1])
    return (1.4 / fan_in**0.5) * normal


def images_of(batch: int, small: bool = False) -> np.ndarray:
    """(batch, 224, 224, 3) or (batch, 64, 64, 3), as if normalised."""
    side = 64 if small else 224
    return np.random.default_rng(0).standard_normal((batch, side, side, 3), np.float32)


def all_models(small: bool = False) -> list[tuple[str, bool]]:
    """Names, with and without DCLS: one model of each family, then the others; those with DCLS first."""
    names = ["convnext_tiny"] if small else [*FAMILIES, *(name for name in list_models() if name not in FAMILIES)]
    groups = names[: len(FAMILIES)], names[len(FAMILIES) :]
    return [(name, dcls) for group in groups for dcls in (True, False) for name in group]


def explanation(model: Backbone, labels: np.ndarray) -> tuple[Callable[..., dict[str, jax.Array]], nnx.State]:
    """A function of state and images, and the state: logits, raw Grad-CAM maps, and what magnitudes these sum."""
    graph, state = nnx.split(model)

    def explain(state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graph, state)
        a, g = activations_and_gradients(model, images, labels)
        magnitudes = jnp.abs(g.mean((1, 2), keepdims=True) * a).sum(-1)
        return {"logits": model.head(a), "map": grad_cam(model, images, labels), "scale": magnitudes}

    return explain, state


@cache
def references() -> dict[str, np.ndarray]:
    """By "name/dcls/what"; what: logits, map, scale of two images, and the total of the weights they were made with."""
    return dict(np.load(REFERENCES))


def make_references() -> None:
    """In float64, on a CPU (`accelerator.py --references`)."""
    found: dict[str, np.ndarray] = {}
    for name, dcls in all_models():
        model, total = known_model(name, dcls, wide=True)
        explain, state = explanation(model, np.arange(2))
        for what, values in jax.jit(explain)(state, images_of(2).astype(np.float64)).items():
            found[f"{name}/{dcls}/{what}"] = np.asarray(values)
        found[f"{name}/{dcls}/total"] = np.asarray(total)
        print(f"{name}{' dcls' if dcls else ''}", flush=True)
    np.savez_compressed(REFERENCES, **found)  # type: ignore[arg-type]

"""Class activation maps of models that are not ours: a vision transformer in Flax NNX, a small network in Flax Linen.

    python examples/explain_other_models.py [PICTURE.png]

Both learn in seconds to name the colour of a square that lies anywhere on noise; their maps should find the square.
A Flax module needs no change to be explained, at the path of any of its submodules:

    maps = explain(from_module(module), images, layer="blocks.1")  # NNX
    maps = explain(from_module(module, variables, train=False), images, layer="Layer_1")  # Linen

Two things are particular to transformers. Their tokens lie in a grid, but for those before, such as the class token:
these have no place in a map and stay as they are; `prefix_tokens` counts them. And after the last block this head reads
the class token alone, and nothing depends on the others: explain the block before, or "blocks.2.norm1".
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from jax import Array

from dcls_jax.cam import explain, from_module, show_maps

COLOURS = ("red", "green", "blue")
METHODS = ("grad_cam", "eigen_cam", "seg_eigen_cam")
SIZE, PATCH = 32, 4


class Block(nnx.Module):
    """A transformer's block: attention, then two dense layers, each added to what came in."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, dim, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        self.expand = nnx.Linear(dim, 2 * dim, rngs=rngs)
        self.contract = nnx.Linear(2 * dim, dim, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.contract(nnx.gelu(self.expand(self.norm2(tokens))))


class ViT(nnx.Module):
    """A vision transformer that classifies by its class token."""

    def __init__(self, *, dim: int = 32, depth: int = 3, heads: int = 4, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Conv(3, dim, (PATCH, PATCH), strides=PATCH, padding="VALID", rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, dim)))
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (1, (SIZE // PATCH) ** 2 + 1, dim)))
        self.blocks = nnx.List([Block(dim, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.fc = nnx.Linear(dim, len(COLOURS), rngs=rngs)

    def __call__(self, images: Array) -> Array:
        patches = self.embed(images)
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        token = jnp.broadcast_to(self.token[...], (len(images), *self.token.shape[1:]))
        tokens = jnp.concatenate([token, patches], 1) + self.position[...]
        for block in self.blocks:
            tokens = block(tokens)
        return self.fc(self.norm(tokens[:, 0]))


class Layer(linen.Module):
    """A convolution and what is explained, its ReLU."""

    features: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        return linen.relu(linen.Conv(self.features, (3, 3), strides=2)(x))


class ConvNet(linen.Module):
    """A small network in Linen."""

    @linen.compact
    def __call__(self, images: Array) -> Array:
        x = Layer(16)(images)
        x = Layer(32)(x)
        return linen.Dense(len(COLOURS))(x.mean((1, 2)))


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (count, SIZE, SIZE, 3) in [0, 1], labels (count,), and which pixels are square, (count, SIZE, SIZE)."""
    random = np.random.default_rng(seed)
    images = random.uniform(0, 0.6, (count, SIZE, SIZE, 3)).astype(np.float32)
    labels = random.integers(0, len(COLOURS), count)
    squares = np.zeros((count, SIZE, SIZE), bool)
    for square, (top, left) in zip(squares, random.integers(0, SIZE - 8, (count, 2)), strict=True):
        square[top : top + 8, left : left + 8] = True
    return np.where(squares[..., None], np.eye(3, dtype=np.float32)[labels][:, None, None], images), labels, squares


def fit(model: Any, logits_of: Callable[[Any, Array], Array], *, steps: int) -> Any:
    """A module, or variables, after some steps of Adam: they are pytrees, so this serves both."""
    optimiser = optax.adam(3e-3)

    @jax.jit
    def step(model: Any, state: Any, images: Array, labels: Array) -> tuple[Any, Any]:
        def loss(model: Any) -> Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits_of(model, images), labels).mean()

        updates, state = optimiser.update(jax.grad(loss)(model), state)
        return optax.apply_updates(model, updates), state

    state = optimiser.init(model)
    for seed in range(steps):
        images, labels, _ = draw(32, seed)
        model, state = step(model, state, images, labels)
    return model


def main(
    path: str = "explain_other_models.png", *, methods: Sequence[str] = METHODS, steps: int = 120
) -> dict[str, np.ndarray]:
    """Fit both models, explain both, write the picture; returns the maps by model and method."""
    vit = fit(ViT(rngs=nnx.Rngs(0)), lambda module, x: module(x), steps=steps)
    network = ConvNet()
    variables = network.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    variables = fit(variables, lambda variables, x: network.apply(variables, x), steps=steps)
    models = {
        "ViT": (from_module(vit, prefix_tokens=1), "blocks.1"),
        "Linen": (from_module(network, variables), "Layer_1"),
    }
    images, labels, _ = draw(4, seed=10_000)
    maps = {}
    for name, (model, layer) in models.items():
        for method in methods:
            start = time.perf_counter()
            maps[f"{name}\n{method}"] = np.asarray(explain(model, images, labels, method=method, layer=layer))
            shape = maps[f"{name}\n{method}"].shape
            print(f"{name:5} {method:14} maps {shape} in {time.perf_counter() - start:.2f} s with compilation")
    show_maps(images, maps, row_titles=[COLOURS[label] for label in labels]).save(path)
    print(f"picture: {path}")
    return maps


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Class activation maps of models that are not ours: a vision transformer in Flax NNX, a small network in Flax Linen.

    python examples/explain_other_models.py [PICTURE.png]

Both learn in seconds to name the colour of a square that lies anywhere on noise; their maps should find the square.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from jax import Array

from dcls_jax.cam import explain, from_functions, show_maps

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
    """A vision transformer that classifies by its class token, and can be cut after each block, "blocks.i".

    `features` and `head` are all that maps ask of it. Two things are particular to transformers:

    - Activations are a grid, (B, h, w, C). The class token has no place in it, but the rest of the model needs it: it
      goes along in C more channels, the same in every cell, and gets no gradient, so that it has no weight in a map.
    - After the last block the head reads the class token alone, and nothing depends on the other tokens. So the cut,
      unless another is named, is before the last block.
    """

    def __init__(self, *, dim: int = 32, depth: int = 3, heads: int = 4, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Conv(3, dim, (PATCH, PATCH), strides=PATCH, padding="VALID", rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, dim)))
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (1, (SIZE // PATCH) ** 2 + 1, dim)))
        self.blocks = nnx.List([Block(dim, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.fc = nnx.Linear(dim, len(COLOURS), rngs=rngs)

    def __call__(self, images: Array) -> Array:
        return self._classify(self._run(self._tokens(images), 0, len(self.blocks)))

    def features(self, images: Array, upto: str | None = None) -> Array:
        tokens = self._run(self._tokens(images), 0, self._blocks_before(upto))
        side = SIZE // PATCH
        grid = tokens[:, 1:].reshape(len(tokens), side, side, -1)
        return jnp.concatenate([grid, jnp.broadcast_to(tokens[:, :1, None], grid.shape)], -1)

    def head(self, activations: Array, start: str | None = None) -> Array:
        grid, token = jnp.split(activations, 2, -1)
        token = jax.lax.stop_gradient(token[:, :1, 0])
        tokens = jnp.concatenate([token, grid.reshape(len(grid), -1, grid.shape[-1])], 1)
        return self._classify(self._run(tokens, self._blocks_before(start), len(self.blocks)))

    def _tokens(self, images: Array) -> Array:
        patches = self.embed(images)
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        token = jnp.broadcast_to(self.token[...], (len(images), *self.token.shape[1:]))
        return jnp.concatenate([token, patches], 1) + self.position[...]

    def _run(self, tokens: Array, first: int, last: int) -> Array:
        for block in self.blocks[first:last]:
            tokens = block(tokens)
        return tokens

    def _classify(self, tokens: Array) -> Array:
        return self.fc(self.norm(tokens[:, 0]))

    def _blocks_before(self, cut: str | None) -> int:
        names = [f"blocks.{i}" for i in range(len(self.blocks))]
        if cut is None:
            return len(names) - 1
        if cut not in names:
            raise ValueError(f"no layer {cut!r}; the layers are {', '.join(names)}")
        return names.index(cut) + 1


class ConvNet(linen.Module):
    """A Linen module; its two halves are methods of their own."""

    def setup(self) -> None:
        self.convolutions = [linen.Conv(16, (3, 3), strides=2), linen.Conv(32, (3, 3), strides=2)]
        self.fc = linen.Dense(len(COLOURS))

    def __call__(self, images: Array) -> Array:
        return self.classify(self.extract(images))

    def extract(self, images: Array) -> Array:
        for convolution in self.convolutions:
            images = linen.relu(convolution(images))
        return images

    def classify(self, activations: Array) -> Array:
        return self.fc(activations.mean((1, 2)))


def linen_model(key: Array) -> Any:
    """The Linen module as a model: two functions of its variables."""
    module = ConvNet()
    variables = module.init(key, jnp.zeros((1, SIZE, SIZE, 3)))
    apply: Callable[..., Any] = module.apply
    return from_functions(partial(apply, method="extract"), partial(apply, method="classify"), variables)


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
    """The model after some steps of Adam: models are pytrees, so this serves both."""
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
    models = {
        "ViT": fit(ViT(rngs=nnx.Rngs(0)), lambda model, x: model(x), steps=steps),
        "Linen": fit(linen_model(jax.random.key(0)), lambda model, x: model.head(model.features(x)), steps=steps),
    }
    images, labels, _ = draw(4, seed=10_000)
    maps = {}
    for name, model in models.items():
        for method in methods:
            start = time.perf_counter()
            maps[f"{name}\n{method}"] = np.asarray(explain(model, images, labels, method=method))
            shape = maps[f"{name}\n{method}"].shape
            print(f"{name:5} {method:14} maps {shape} in {time.perf_counter() - start:.2f} s with compilation")
    show_maps(images, maps, row_titles=[COLOURS[label] for label in labels]).save(path)
    print(f"picture: {path}")
    return maps


if __name__ == "__main__":
    main(*sys.argv[1:])

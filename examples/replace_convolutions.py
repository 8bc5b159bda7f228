"""Learnable spacings in a model that is not ours: trained, its convolutions made DCLS, trained on.

    python examples/replace_convolutions.py

A small network with 3x3 depthwise convolutions is to tell how far apart two spots lie, which is farther than it sees:
it guesses. Its depthwise convolutions become DCLS, an element for each of their nine cells, with the same values at the
same places, so that at first nothing changes. Then the elements move to where they are of use.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from dcls_jax import DclsConfig
from dcls_jax.training import clamp_positions, cosine_schedule, optimiser, replace_convolutions, replaced

SIZE, DISTANCES, BATCH = 22, (8, 11), 32  # pixels, pixels, pictures


class Block(nnx.Module):
    """A depthwise convolution, then a pointwise one, added to what came in."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs) -> None:
        self.depthwise = nnx.Conv(dim, dim, (3, 3), padding="CIRCULAR", feature_group_count=dim, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.pointwise = nnx.Conv(dim, dim, (1, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return x + self.pointwise(nnx.gelu(self.norm(self.depthwise(x))))


class Net(nnx.Module):
    def __init__(self, *, dim: int = 8, depth: int = 1, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(1, dim, (3, 3), padding="CIRCULAR", rngs=rngs)
        self.blocks = nnx.List([Block(dim, rngs=rngs) for _ in range(depth)])
        self.fc = nnx.Linear(dim, len(DISTANCES), rngs=rngs)

    def __call__(self, images: Array) -> Array:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.max((1, 2)))


def draw(key: Array) -> tuple[Array, Array]:
    """Pictures (BATCH, SIZE, SIZE, 1) of two spots in one row, on noise, and which of DISTANCES they are apart."""
    label_key, place_key, noise_key = jax.random.split(key, 3)
    labels = jax.random.randint(label_key, (BATCH,), 0, len(DISTANCES))
    rows, columns = jax.random.randint(place_key, (2, BATCH, 1), 0, SIZE)
    pixels = jnp.arange(SIZE)

    def line(places: Array) -> Array:
        """A spot on each of the lines (BATCH, SIZE), whose ends meet: where it lies tells nothing."""
        away = (pixels - places + SIZE // 2) % SIZE - SIZE // 2
        return jnp.exp(-(away**2) / 4)

    spots = line(columns) + line(columns + jnp.array(DISTANCES)[labels][:, None])
    images = line(rows)[:, :, None] * spots[:, None, :] + 0.1 * jax.random.normal(noise_key, (BATCH, SIZE, SIZE))
    return images[..., None], labels


def train(model: Net, steps: int, *, seed: int) -> Net:
    """The model after so many steps on new pictures."""
    graph, params = nnx.split(model)
    optimise = optimiser(cosine_schedule(0.01, steps=steps, warmup_steps=steps // 10), weight_decay=0.05)

    @jax.jit
    def step(params: nnx.State, state: optax.OptState, key: Array) -> tuple[nnx.State, optax.OptState]:
        images, labels = draw(key)

        def loss(params: nnx.State) -> Array:
            logits = nnx.merge(graph, params)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimise.update(jax.grad(loss)(params), state, params)
        model = nnx.merge(graph, optax.apply_updates(params, updates))
        clamp_positions(model)
        return nnx.state(model), state

    state = optimise.init(params)
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state = step(params, state, key)
    return nnx.merge(graph, params)


def accuracy(model: Callable[[Array], Array]) -> float:
    """On 320 new pictures."""
    right = [
        model(images).argmax(-1) == labels for images, labels in map(draw, jax.random.split(jax.random.key(99), 10))
    ]
    return float(jnp.concatenate(right).mean())


def main(steps: int = 200) -> tuple[float, float]:
    """Accuracy without and with DCLS."""
    model = train(Net(rngs=nnx.Rngs(0)), steps, seed=1)
    plain = accuracy(model)
    print(f"3x3 convolutions: {plain:.0%} right")

    config = DclsConfig(kernel_count=9, dilated_kernel_size=13, version="v1")
    dcls = replace_convolutions(model, config, keep_weights=True, rngs=nnx.Rngs(2))
    images, _ = draw(jax.random.key(3))
    difference = jnp.abs(dcls(images) - model(images)).max()
    print(f"made DCLS: {', '.join(replaced(dcls))}; the output moves by {difference:.0e}")

    dcls = train(dcls, 4 * steps, seed=4)
    with_dcls = accuracy(dcls)
    reach = [float(jnp.abs(layer.positions.P[...]).max()) for layer in replaced(dcls).values()]
    print(f"trained on: {with_dcls:.0%} right, elements up to {max(reach):.1f} pixels from the middle")
    return plain, with_dcls


if __name__ == "__main__":
    main()

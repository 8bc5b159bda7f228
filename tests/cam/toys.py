"""Small models whose maps are known, as the tests of several methods use them."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.conftest import initialiser


class PooledLinear(nnx.Module):
    """Features are the image itself; global average pooling and a linear head."""

    def __init__(self, channels=3, classes=5):
        self.fc = nnx.Linear(channels, classes, kernel_init=initialiser(3), rngs=nnx.Rngs(0))
        self.fc.bias[...] = jnp.arange(classes, dtype=jnp.float32)

    def features(self, images):
        return images

    def head(self, activations):
        return self.fc(activations.mean((1, 2)))


class Cubic(PooledLinear):
    """A head whose gradient varies over space."""

    def head(self, activations):
        return self.fc((activations**3).mean((1, 2)))


class Flattened(PooledLinear):
    """A linear head with weights of its own for each cell: activations (B, 4, 4, 3)."""

    def __init__(self):
        super().__init__(channels=48)

    def head(self, activations):
        return self.fc(activations.reshape(len(activations), -1))


class ConvNet(nnx.Module):
    """Convolution, ReLU, (cut) convolution, ReLU, pooling and a linear layer, with or without biases."""

    def __init__(self, bias=True, activation=jax.nn.relu):
        draw = initialiser(1)
        options = {"use_bias": bias, "kernel_init": draw, "bias_init": draw, "rngs": nnx.Rngs(0)}
        self.conv1 = nnx.Conv(3, 6, (3, 3), **options)
        self.conv2 = nnx.Conv(6, 8, (3, 3), strides=2, **options)
        self.fc = nnx.Linear(8, 5, **options)
        self.activation = nnx.static(activation)

    def features(self, images):
        return self.activation(self.conv1(images))

    def head(self, activations):
        return self.fc(self.activation(self.conv2(activations)).mean((1, 2)))

"""Values that other libraries publish in their own tests: captum, torch-cam, xplique."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam.gradient import finer_cam, grad_cam, hires_cam
from dcls_jax.cam.guided import guided_grad_cam
from dcls_jax.cam.targets import Contrast, scores
from tests.cam.toys import PooledLinear
from tests.conftest import normal

LABEL = jnp.array([0])


class CaptumNet(nnx.Module):
    """captum's BasicModel_ConvNet_One_Conv: convolution of ones, ReLU, linear layer of +1 and -1, ReLU."""

    def features(self, images, upto="relu"):
        return self._run(images, ["input", "conv", "relu"][: 1 + ["input", "conv", "relu"].index(upto)])

    def head(self, activations, start="relu"):
        names = ["input", "conv", "relu", "head"]
        return self._run(activations, names[names.index(start) + 1 :])

    def _run(self, x, steps):
        for step in steps:
            x = {"input": lambda x: x, "conv": self._conv, "relu": jax.nn.relu, "head": self._classify}[step](x)
        return x

    def _conv(self, x):
        ones = jnp.ones((3, 3, 1, 2))
        y = jax.lax.conv_general_dilated(x, ones, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + jnp.array([-50.0, -75.0])

    def _classify(self, x):
        weights = jnp.array([1.0, 1, 1, 1, 1, -1, -1, -1])
        return jax.nn.relu(x.transpose(0, 3, 1, 2).reshape(len(x), 8) @ weights)[:, None]  # NCHW order


@pytest.fixture
def image():
    return jnp.arange(16, dtype=jnp.float32).reshape(1, 4, 4, 1)


@pytest.mark.parametrize(
    ("method", "layer", "expected"),
    [
        (grad_cam, "conv", [[11.25, 13.5], [20.25, 22.5]]),
        (grad_cam, "relu", [[0, 4], [28, 32.5]]),
        (hires_cam, "relu", [[0, 4], [25, 25]]),
    ],
)
def test_captum_one_conv_net(image, method, layer, expected):
    maps = method(CaptumNet(), image, LABEL, layer=layer)
    np.testing.assert_allclose(maps[0], expected, atol=1e-4)


def test_captum_with_the_input_as_layer(image):
    image = image.at[0, 1, 1].set(-4)
    np.testing.assert_allclose(grad_cam(CaptumNet(), image, LABEL, layer="input"), 0.5625 * image[..., 0], atol=1e-4)


def test_captum_guided_grad_cam(image):
    guided = guided_grad_cam(CaptumNet(), image, LABEL, layer="relu", interpolation="nearest")
    expected = [[0, 0, 4, 4], [0, 0, 12, 8], [28, 84, 97.5, 65], [28, 56, 65, 32.5]]
    np.testing.assert_allclose(guided[0, ..., 0], expected, atol=1e-4)


def test_torchcam_takes_differences_before_the_relu():
    model = PooledLinear(channels=1, classes=3)
    model.fc.kernel[...] = jnp.array([[1.0, 3.0, -1.0]])
    image = jnp.arange(4, dtype=jnp.float32).reshape(1, 2, 2, 1)
    assert not grad_cam(model, image, Contrast(LABEL, jnp.array([[1, 2]]))).any()
    assert not finer_cam(model, image, LABEL, count=2, weighted=False).any()


def test_xplique_weights_are_spatial_means():
    gradients = np.zeros((2, 2, 4), np.float32)
    gradients[..., 0] = 1
    gradients[0, :, 1] = 1
    gradients[0, :, 2] = [1, 0.5]
    gradients[1, 1, 3] = 0.5

    class Fixed(PooledLinear):
        def head(self, activations):
            return (activations * gradients).sum((1, 2, 3))[:, None]

    images = normal(1, 2, 2, 4)
    expected = images @ jnp.array([1, 0.5, 0.375, 0.125])
    np.testing.assert_allclose(grad_cam(Fixed(), images, LABEL), expected, atol=1e-6)
    assert scores(Fixed().head(images), LABEL).shape == (1,)

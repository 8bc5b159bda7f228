"""Methods that look at the pixels: what integrated gradients sum to, what occlusion and RISE find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam import explain, input_x_gradient, integrated_gradients, occlusion, rise, smooth_grad
from dcls_jax.cam.targets import scores
from tests.cam.toys import ConvNet
from tests.conftest import normal

LABELS = jnp.array([0, 4])


@pytest.fixture
def images():
    return normal(2, 6, 5, 3)


@pytest.mark.slow
def test_integrated_gradients_sum_to_the_change_of_the_score(images, assert_close):
    model = ConvNet(activation=jax.nn.gelu)
    baseline = normal(2, 6, 5, 3, seed=1)
    maps = explain(model, images, LABELS, method="integrated_gradients", baseline=baseline)
    change = scores(model.head(model.features(images)), LABELS) - scores(model.head(model.features(baseline)), LABELS)
    assert_close(maps.sum((1, 2)), change, 1e-5)
    linear = ConvNet(activation=lambda x: x)
    with_one_step = explain(linear, images, LABELS, method="integrated_gradients", steps=1)
    assert_close(with_one_step, input_x_gradient(linear, images, LABELS), 1e-5)


class Corner:
    """Looks at one pixel."""

    def features(self, images):
        return images

    def head(self, activations):
        return activations[:, 1, 3]


jax.tree_util.register_static(Corner)


@pytest.mark.slow
def test_occlusion_and_rise_find_the_pixel_that_counts(images, assert_close):
    hidden = explain(Corner(), images, [0, 1], method="occlusion", window=(2, 2), stride=1)
    assert_close(hidden[:, 1, 3], images[:, 1, 3, [0, 1]].diagonal(), 1e-6)
    far = np.ones((6, 5), bool)
    far[0:3, 2:5] = False
    assert not hidden[:, far].any()
    bright = jnp.abs(images) + 1
    maps = explain(Corner(), bright, lambda logits: logits[0], method="rise", key=jax.random.key(0), masks=400, cells=3)
    rows, columns = np.unravel_index(maps.reshape(2, -1).argmax(1), (6, 5))
    assert (abs(rows - 1) <= 1).all()  # a cell is two pixels wide
    assert (abs(columns - 3) <= 1).all()


def test_smooth_grad_of_a_linear_model_is_its_gradient(images, assert_close):
    model = ConvNet(activation=lambda x: x)
    gradient = jax.grad(lambda x: scores(model.head(model.features(x)), LABELS).sum())(images)
    maps = explain(model, images, LABELS, method="smooth_grad", key=jax.random.key(0), samples=3)
    assert_close(maps, gradient.sum(-1), 1e-5)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (integrated_gradients, {"steps": 0}, "steps .=0. must be at least 1"),
        (smooth_grad, {"samples": 0, "key": jax.random.key(0)}, "samples .=0. must be at least 1"),
        (occlusion, {"window": 7}, r"window \(=7\) must not be larger than the images \(6, 5\)"),
        (occlusion, {"window": 2, "stride": 3}, "stride .=3. must not be larger than the window"),
        (occlusion, {"window": 0}, "window .=0. must be a positive whole number"),
        (rise, {"keep": 1.0, "key": jax.random.key(0)}, "keep .=1.0. between 0 and 1"),
        (rise, {"layer": "stem", "key": jax.random.key(0)}, "layer .='stem'. must be None: rise looks at the pixels"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(images, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(ConvNet(), images, LABELS, **options)

"""Closed forms and identities that the gradient methods must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam import explain, grad_cam, postprocess, study_maps, threshold_grad_cam
from dcls_jax.cam.targets import scores


class PooledLinear(nnx.Module):
    """Features are the image itself; global average pooling and a linear head."""

    def __init__(self, channels=3, classes=5):
        rngs = nnx.Rngs(0)
        self.fc = nnx.Linear(channels, classes, rngs=rngs)
        self.fc.bias[...] = jnp.arange(classes, dtype=jnp.float32)

    def features(self, images):
        return images

    def head(self, activations):
        return self.fc(activations.mean((1, 2)))


class Cubic(PooledLinear):
    """A head whose gradient varies over space."""

    def head(self, activations):
        return self.fc((activations**3).mean((1, 2)))


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (4, 6, 5, 3))


LABELS = jnp.array([0, 4, 2, 2])


def test_grad_cam_of_a_pooled_linear_head_is_the_closed_form(images, assert_close):
    model = PooledLinear()
    weights = model.fc.kernel[...].T[LABELS]  # (B, C)
    expected = jnp.einsum("bhwc,bc->bhw", images, weights) / (6 * 5)
    assert_close(grad_cam(model, images, LABELS), expected, 1e-6)
    # and the map sums to the logit without its bias
    assert_close(grad_cam(model, images, LABELS).sum((1, 2)), scores(model.head(images), LABELS) - LABELS, 1e-5)


def test_threshold_grad_cam_keeps_positive_products_only(images, assert_close):
    model = PooledLinear()
    weights = model.fc.kernel[...].T[LABELS][:, None, None]
    assert_close(threshold_grad_cam(model, images, LABELS), jax.nn.relu(weights * images).sum(-1) / 30, 1e-6)
    assert (threshold_grad_cam(model, images, LABELS) >= grad_cam(model, images, LABELS) - 1e-7).all()


def test_weights_are_the_spatial_mean_of_the_gradient(images, assert_close):
    model = Cubic()
    weights = (3 * images**2 / 30 * model.fc.kernel[...].T[LABELS][:, None, None]).mean((1, 2), keepdims=True)
    assert_close(grad_cam(model, images, LABELS), (weights * images).sum(-1), 1e-5)


def test_targets_are_linear_in_soft_labels(images, assert_close):
    model = Cubic()
    one_hot = jax.nn.one_hot(LABELS, 5)
    maps = grad_cam(model, images, LABELS)
    assert_close(grad_cam(model, images, one_hot), maps, 1e-6)
    other = grad_cam(model, images, (LABELS + 1) % 5)
    assert_close(grad_cam(model, images, 2 * one_hot - jax.nn.one_hot((LABELS + 1) % 5, 5)), 2 * maps - other, 1e-5)
    assert_close(grad_cam(model, images, lambda logits: logits[2]), grad_cam(model, images, jnp.full(4, 2)), 1e-6)


def test_images_do_not_meet_in_a_batch(images, assert_close):
    model = Cubic()
    together = explain(model, images, LABELS, method="grad_cam", size=11)
    assert together.shape == (4, 11, 11)
    for chunk in (1, 3, 4, 9):
        assert_close(explain(model, images, LABELS, size=11, chunk=chunk), together, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradcam"}, "method"),
        ({"targets": jnp.array([0, 1, 2, 5])}, "label 5, but the model has classes 0 to 4"),
        ({"targets": jnp.array([0, -1, 2, 3])}, "label -1"),
        ({"targets": jnp.array([0, 1])}, r"targets have shape \(2,\)"),
        ({"targets": jnp.zeros((4, 6))}, r"targets have shape \(4, 6\)"),
        ({"images": jnp.zeros((6, 5, 3))}, "images have shape"),
        ({"images": jnp.zeros((0, 6, 5, 3))}, "images have shape"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(**({"model": PooledLinear(), "images": images, "targets": LABELS} | arguments))


def test_study_refuses_methods_it_does_not_have(images):
    with pytest.raises(ValueError, match="not in the study"):
        study_maps(PooledLinear(), images, LABELS, method="score_cam")


def test_postprocess_runs_in_the_documented_order():
    maps = jnp.array([[[-3.0, 0.0], [1.0, 2.0]]])
    np.testing.assert_allclose(postprocess(maps)[0], [[0, 0], [0.5, 1]])
    np.testing.assert_allclose(postprocess(maps, relu=False)[0], [[0, 0.6], [0.8, 1]], atol=1e-6)
    np.testing.assert_allclose(postprocess(maps, floor=0.6)[0], [[0.6, 0.6], [0.6, 1]], atol=1e-6)
    # floor before resize: the corners keep it, and bilinear values lie between
    resized = postprocess(maps, floor=0.6, size=4)[0]
    np.testing.assert_allclose(resized[0], 0.6, atol=1e-6)
    np.testing.assert_allclose(resized[3], [0.6, 0.7, 0.9, 1.0], atol=1e-6)


def test_constant_maps_become_zero_never_nan():
    assert not postprocess(jnp.full((1, 3, 3), 7.0)).any()
    assert not postprocess(jnp.full((1, 3, 3), -7.0)).any()
    np.testing.assert_allclose(postprocess(jnp.full((1, 3, 3), 7.0), floor=0.3), 0.3)


def test_study_threshold_map_of_a_dead_image_is_its_floor():
    model = PooledLinear()
    maps = study_maps(model, jnp.zeros((1, 4, 4, 3)), jnp.array([1]), method="threshold_grad_cam", size=8)
    np.testing.assert_allclose(maps, 0.3)


def test_bfloat16_gives_finite_maps(images):
    assert jnp.isfinite(grad_cam(PooledLinear(), images.astype(jnp.bfloat16), LABELS)).all()

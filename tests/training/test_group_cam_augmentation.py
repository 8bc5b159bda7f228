import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import gaussian_filter1d

from dcls_jax import cam
from dcls_jax.models import create_model
from dcls_jax.training import hide_unexplained
from dcls_jax.training.group_cam import gaussian_blur
from tests.conftest import normal, random_model

IMAGES = normal(3, 8, 6, 2)
LABELS = jnp.array([0, 1, 2])
MAPS = jnp.array([[[4.0, 1.0], [-3.0, 2.0]], [[0.0, 1.0], [2.0, 8.0]], [[5.0, 5.0], [5.0, 5.0]]])


def test_blur_is_scipys(assert_close):
    images = normal(2, 70, 60, 3)
    expected = images
    for axis in (1, 2):
        expected = gaussian_filter1d(np.asarray(expected, np.float64), 5.0, axis=axis, radius=7, mode="mirror")
    assert_close(gaussian_blur(images, 15, 5.0), expected, 1e-5)
    constant = jnp.full((1, 9, 9, 1), 2.0)  # smaller than the blur
    assert_close(gaussian_blur(constant), constant, 1e-6)


@pytest.mark.parametrize("blend", ["intended", "published"])
def test_the_blend(blend, assert_close):
    found = hide_unexplained(IMAGES, LABELS, lambda images, labels: MAPS, blend=blend)
    large = np.asarray(jax.image.resize(np.maximum(MAPS, 0), (3, 8, 6), "bilinear"))
    large = large - large.min((1, 2), keepdims=True)
    large[:2] /= large[:2].max((1, 2), keepdims=True)
    m = np.where(large < large.mean(), 0.0, 1.0)[..., None]
    x, blurred = np.asarray(IMAGES), np.asarray(gaussian_blur(IMAGES))
    expected = x * m + blurred * (1 - m) if blend == "intended" else x * m + blurred + (1 - m)
    assert 0 < m[:2].mean() < 1
    expected[2] = x[2]  # its map is constant
    assert_close(found, expected, 1e-5)


@pytest.mark.slow
def test_a_share_of_the_batch(assert_close):
    seen = []

    def maps_of(images, labels):
        seen.append((images.shape, labels.tolist()))
        return MAPS[: len(images)]

    found = hide_unexplained(IMAGES, LABELS, maps_of, share=0.6)
    assert seen == [((2, 8, 6, 2), [0, 1])]
    np.testing.assert_array_equal(found[2], IMAGES[2])
    assert_close(found[:2], hide_unexplained(IMAGES[:2], LABELS[:2], maps_of), 1e-6)
    np.testing.assert_array_equal(hide_unexplained(IMAGES, LABELS, maps_of, share=0), IMAGES)
    assert len(seen) == 2


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"blend \(='typo'\) must be one of intended, published"):
        hide_unexplained(IMAGES, LABELS, lambda *_: MAPS, blend="typo")
    with pytest.raises(ValueError, match=r"share \(=2\) must lie between 0 and 1"):
        hide_unexplained(IMAGES, LABELS, lambda *_: MAPS, share=2)


@pytest.mark.slow
def test_in_a_jitted_step_no_gradient_goes_through_the_maps(assert_close):
    model = random_model(lambda: create_model("convnext_tiny", depths=(1, 1), dims=(4, 8), num_classes=3))
    graphdef, params = nnx.split(model)
    images = normal(2, 32, 32, 3)
    labels = jnp.array([0, 2])

    def loss(params, watched):
        def maps_of(images, labels):
            return cam.group_cam(nnx.merge(graphdef, watched), images, labels, groups=4)

        hidden = hide_unexplained(images, labels, maps_of)
        return nnx.merge(graphdef, params)(hidden).mean(), hidden

    (_, hidden), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, params)
    assert 0.05 < (np.abs(hidden - images) > 1e-6).mean() < 0.95
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[0])) > 0
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[1])) == 0
    maps = cam.group_cam(model, images, labels, groups=4)
    assert_close(hidden, hide_unexplained(images, labels, lambda *_: maps), 1e-4)

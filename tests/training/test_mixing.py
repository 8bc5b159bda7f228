import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.training import cutmix, cutmix_box, mixup, random_mix
from tests.conftest import normal

IMAGES, LABELS = normal(4, 6, 8, 3), jnp.array([0, 2, 1, 2])


def soft(ratio: float, smoothing: float = 0.0) -> np.ndarray:
    one = np.eye(3)[np.asarray(LABELS)] * (1 - smoothing) + smoothing / 3
    return ratio * one + (1 - ratio) * one[::-1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup(smoothing):
    images, labels = mixup(IMAGES, LABELS, ratio=0.3, num_classes=3, smoothing=smoothing)
    np.testing.assert_allclose(images, 0.3 * IMAGES + 0.7 * IMAGES[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(labels, soft(0.3, smoothing), rtol=1e-5)


def test_integers_cannot_be_mixed():
    with pytest.raises(ValueError, match=r"images \(of dtype uint8\) must be floating"):
        mixup(jnp.zeros((2, 2, 2, 3), jnp.uint8), LABELS[:2], ratio=0.5, num_classes=3)


def test_cutmix():
    images, labels = jax.jit(lambda box: cutmix(IMAGES, LABELS, box=box, num_classes=3, smoothing=0.1))((1, 4, 0, 6))
    expected = np.array(IMAGES)
    expected[:, 1:4, 0:6] = np.asarray(IMAGES)[::-1, 1:4, 0:6]
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_allclose(labels, soft(1 - 18 / 48, 0.1), rtol=1e-5)


def test_images_keep_their_dtype_and_labels_are_float32():
    for images, labels in (
        mixup(IMAGES.astype(jnp.bfloat16), LABELS, ratio=jnp.float32(0.3), num_classes=3),
        cutmix(IMAGES.astype(jnp.bfloat16), LABELS, box=(0, 1, 0, 1), num_classes=3),
    ):
        assert images.dtype == jnp.bfloat16
        assert labels.dtype == jnp.float32
    np.testing.assert_allclose(mixup(IMAGES.astype(jnp.bfloat16), LABELS, ratio=0.3, num_classes=3)[1], soft(0.3), 1e-6)


def test_boxes_leave_the_ratio_and_lie_anywhere():
    keys = jax.random.split(jax.random.key(0), 500)
    y0, y1, x0, x1 = (np.asarray(side) for side in jax.vmap(lambda key: cutmix_box(key, (40, 80), 0.75))(keys))
    assert y0.min() == x0.min() == 0
    assert y1.max() == 40
    assert x1.max() == 80
    assert (y1 - y0).max() == 20  # half of each side, where nothing is cut off
    assert (x1 - x0).max() == 40
    assert np.unique(y0 + y1).size > 25


def test_random_mix_depends_on_the_key_alone_and_switches():
    draw = jax.jit(lambda key: random_mix(key, IMAGES, LABELS, num_classes=3, mixup_alpha=0.8, smoothing=0.1))
    keys = jax.random.split(jax.random.key(1), 200)
    images, labels = jax.vmap(draw)(keys)
    np.testing.assert_allclose(images[7], draw(keys[7])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-5)
    cut = [bool(np.isin(np.asarray(image), np.asarray(IMAGES)).all()) for image in images]
    assert 70 < sum(cut) < 130
    # Beta(0.8, 0.8) has variance 1 / (4 * 2.6).
    ratios = (np.asarray(labels)[~np.array(cut), 0, 0] - 0.1 / 3) / 0.9
    assert ratios.mean() == pytest.approx(0.5, abs=0.09)
    assert ratios.var() == pytest.approx(1 / 10.4, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_one_kind_alone_or_none(alphas):
    keys = jax.random.split(jax.random.key(2), 8)
    mix = lambda key: random_mix(key, IMAGES, LABELS, num_classes=3, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])  # noqa: E731
    images, labels = jax.vmap(mix)(keys)
    cut = np.array([np.isin(np.asarray(image), np.asarray(IMAGES)).all() for image in images])
    assert (cut == (alphas[0] == 0)).all()
    if not any(alphas):
        np.testing.assert_array_equal(images, np.broadcast_to(IMAGES, images.shape))
        np.testing.assert_array_equal(labels, np.broadcast_to(soft(1.0), labels.shape))

"""Group-CAM: identities, its authors' revisions step by step, the blur and the clustering."""

from functools import partial
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import gaussian_filter1d

from dcls_jax.cam import activations_and_gradients, grad_cam, normalise, resize
from dcls_jax.cam.grouping import GroupConvention, gaussian_blur, group_cam, k_means
from tests.conftest import initialiser, normal, slow

LABELS = jnp.array([0, 4, 2])
STATIC = ("convention", "groups", "clustering", "blur_size", "blur_sigma", "masks_at_a_time")
compiled = jax.jit(group_cam, static_argnames=STATIC)


class Small(nnx.Module):
    """Signed activations smaller than the image; a head that is not linear."""

    def __init__(self, channels=7, classes=5):
        options = {"kernel_init": initialiser(0), "rngs": nnx.Rngs(0)}
        self.conv = nnx.Conv(3, channels, (3, 3), strides=(3, 3), padding="VALID", **options)
        self.fc = nnx.Linear(channels, classes, **options)
        self.fc.kernel[...] *= 5

    def features(self, images):
        return self.conv(images)

    def head(self, activations):
        return self.fc(jax.nn.gelu(activations).mean((1, 2)))


class Constant(Small):
    """A classifier that does not look, though it has gradients."""

    def head(self, activations):
        logits = super().head(activations)
        return logits - jax.lax.stop_gradient(logits)


@pytest.fixture
def images():
    return normal(3, 12, 15, 3)


def run(model, images, targets, **options):
    """Compiled, with a blur that fits the small image."""
    options = {"groups": 3, "blur_size": 9, "blur_sigma": 4.0, "key": jax.random.key(0)} | options
    return compiled(model, images, targets, **options)


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["official", "paper"])
def test_steps_of_its_authors_at_image_size(images, convention, assert_close):
    model = Small()

    @jax.jit
    def authors(model):
        a, g = activations_and_gradients(model, images, LABELS)
        weighted = g.mean((1, 2), keepdims=True) * a
        expected, blurred = 0, gaussian_blur(images, 9, 4.0)
        base = jax.nn.softmax(model.head(model.features(blurred)))[jnp.arange(3), LABELS]
        for chunk in (weighted[..., :3], weighted[..., 3:6], weighted[..., 6:]):
            group = jnp.maximum(chunk.sum(-1), 0)
            if convention == "paper":
                group = jnp.where(group > jnp.percentile(group, 70, axis=(1, 2), keepdims=True), group, 0)
            enlarged = resize(group, (12, 15))
            mask = normalise(enlarged)
            masked = images * mask[..., None] + blurred * (1 - mask[..., None])
            score = jax.nn.softmax(model.head(model.features(masked)))[jnp.arange(3), LABELS] - base
            if convention == "paper":
                expected += score[:, None, None] * mask
            else:
                expected += jax.nn.relu(score)[:, None, None] * enlarged
        return expected

    expected = authors(model)
    assert np.abs(expected).max() > 1e-4
    assert_close(resize(run(model, images, LABELS, convention=convention), (12, 15)), expected, 1e-5)


@pytest.mark.slow
def test_one_group_is_grad_cam(images, assert_close):
    model = Small()
    maps = run(model, images, LABELS, groups=1)
    positive = np.asarray(maps.max((1, 2)) > 0)  # where the mask raised the score
    assert positive.any()
    expected = normalise(jax.nn.relu(grad_cam(model, images, LABELS)))
    assert_close(normalise(maps)[positive], expected[positive], 1e-5)
    assert not maps[~positive].any()


def test_scores_count_when_they_are_positive(images):
    assert (run(Small(), images, LABELS) >= 0).all()
    assert (run(Small(), images, LABELS, convention="paper") < 0).any()


@pytest.mark.slow
def test_a_classifier_that_does_not_look_gives_zero(images):
    model = Constant()
    assert jnp.abs(grad_cam(model, images, LABELS)).max() > 0
    for convention in ("official", "paper"):
        assert not run(model, images, LABELS, convention=convention).any()


@pytest.mark.slow
@pytest.mark.parametrize(("convention", "clustering"), [("official", "k_means"), ("paper", "chunks")])
def test_dead_groups_add_nothing(images, clustering, convention, assert_close):
    options = {"clustering": clustering, "convention": convention}
    model = Small()
    many = run(model, images, LABELS, groups=20, **options)  # more groups than channels: the others are empty
    assert_close(many, run(model, images, LABELS, groups=7, convention=convention), 1e-5)
    assert jnp.isfinite(run(model, images.astype(jnp.bfloat16), LABELS, **options)).all()
    model.fc.kernel[...] = jnp.zeros_like(model.fc.kernel[...])
    assert not run(model, images, LABELS, **options).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("convention", "clustering"),
    [
        ("paper", "k_means"),
        slow("official", "chunks"),
        slow(GroupConvention(percentile=40.0, probabilities=False), "chunks"),
    ],
)
def test_images_do_not_meet_and_chunks_do_not_matter(images, clustering, convention, assert_close):
    options = {"clustering": clustering, "convention": convention}
    model = Small()
    together = run(model, images, LABELS, **options)
    assert together.shape == (3, 4, 5)
    alone = [run(model, images[i : i + 1], LABELS[i : i + 1], **options) for i in range(3)]
    assert_close(together, jnp.concatenate(alone), 1e-5)
    assert_close(run(model, images, LABELS, masks_at_a_time=6, **options), together, 1e-5)


def test_blur_is_a_gaussian_that_mirrors_the_border(images, assert_close):
    expected = np.asarray(images)
    for axis in (1, 2):
        expected = gaussian_filter1d(expected, 2.5, axis, mode="mirror", radius=4)
    assert_close(gaussian_blur(images, 9, 2.5), expected, 1e-5)
    assert_close(gaussian_blur(jnp.ones((1, 5, 4, 3)), 51, 50.0), np.ones((1, 5, 4, 3)), 1e-6)


def test_k_means_finds_clusters_in_any_order():
    rng = np.random.default_rng(0)
    members = rng.permutation(np.repeat(np.arange(4), [3, 10, 1, 6]))
    points = jnp.asarray(10 * np.eye(4)[members] @ rng.normal(size=(4, 9)) + 0.1 * rng.normal(size=(20, 9)))
    labels = jax.jit(partial(k_means, clusters=4))
    for seed in range(3):
        found = np.asarray(labels(points, key=jax.random.key(seed)))
        assert len({*zip(members.tolist(), found.tolist(), strict=True)}) == len(set(found.tolist())) == 4
    assert (labels(points, key=jax.random.key(0)) == labels(points, key=jax.random.key(0))).all()


@pytest.mark.slow
def test_clusters_do_not_depend_on_the_order_of_channels_as_chunks_do(images, assert_close):
    """Each channel a cluster: k-means sums none, in any order; chunks of two sum neighbours."""
    model, shuffled = Small(6), Small(6)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    shuffled.conv.kernel[...] = model.conv.kernel[...][..., order]
    shuffled.fc.kernel[...] = model.fc.kernel[...][order]
    maps = [run(m, images, LABELS, groups=6, clustering="k_means") for m in (model, shuffled)]
    assert_close(maps[0], maps[1], 1e-5)
    chunks = [run(m, images, LABELS, groups=3) for m in (model, shuffled)]
    assert jnp.abs(chunks[0] - chunks[1]).max() > 1e-3 * jnp.abs(chunks[0]).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "later"}, "convention .='later'. must be one of paper, official"),
        ({"clustering": "agglomerate"}, "clustering .='agglomerate'. must be"),
        ({"clustering": "k_means"}, "clustering .='k_means'. needs a key"),
        ({"groups": 0}, "groups .=0. must be at least 1"),
        ({"blur_size": 50}, "size .=50. must be odd"),
        ({"blur_sigma": 0.0}, "sigma .=0.0. positive"),
        ({"masks_at_a_time": 0}, "masks_at_a_time .=0. must be"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(images, options, message):
    with pytest.raises(ValueError, match=message):
        group_cam(Small(), images, LABELS, **options)


@pytest.mark.slow
def test_agglomerative_clustering_finds_what_belongs_together(images, assert_close):
    model = Small()
    doubled = model.conv.kernel[...].at[..., 4:].set(model.conv.kernel[..., :3])  # channels 4 to 6 are 0 to 2 again
    model.conv.kernel[...] = doubled
    model.fc.kernel[...] = model.fc.kernel[...].at[4:].set(model.fc.kernel[:3])
    maps = run(model, images, LABELS, clustering="agglomerative", groups=4)
    pairs = jnp.array([0, 1, 2, 3, 0, 1, 2])
    with patch("dcls_jax.cam.grouping._groups_of", lambda weighted, *_: jnp.broadcast_to(pairs, (len(weighted), 7))):
        expected = group_cam(model, images, LABELS, groups=4, blur_size=9, blur_sigma=4.0)
    assert_close(maps, expected, 1e-5)

"""Methods that decompose activations: peers' raw maps, invariances, fixtures worked out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam import (
    activations_and_gradients,
    deep_feature_factorisation,
    eigen_cam,
    eigen_grad_cam,
    eigen_smooth,
    fem,
    kpca_cam,
    seg_eigen_cam,
)
from dcls_jax.cam.decomposition import non_negative_factors, principal_map
from tests import golden
from tests.conftest import initialiser, normal

LABELS = jnp.array([1, 0])


class Given(nnx.Module):
    """The image is the activation; the head is linear in its cubes, so that gradients vary over space."""

    def __init__(self, channels=6):
        self.fc = nnx.Linear(channels, 2, kernel_init=initialiser(0), rngs=nnx.Rngs(0))

    def features(self, images):
        return images

    def head(self, activations):
        return self.fc((activations**3).mean((1, 2)))


@pytest.fixture
def a():
    return normal(2, 5, 4, 6)


def up_to_sign(maps, expected):
    """The maps, each with the sign that fits better."""
    maps = np.asarray(maps)
    return maps * np.sign((maps * expected).sum((1, 2), keepdims=True))


@pytest.mark.parametrize("name", golden.PEERS)
def test_raw_maps_are_those_of_pytorch_grad_cam(name, assert_close):
    model, expected = golden.load(name)
    peer = golden.peer_maps(name)

    @jax.jit
    def maps(model, images, targets):
        return [method(model, images, targets, layer="stages.2") for method in (eigen_cam, eigen_grad_cam, fem)]

    eigen, eigen_grad, outstanding = maps(model, expected["image"], expected["one_hot"])
    assert_close(up_to_sign(eigen, peer["EigenCAM.raw"]), peer["EigenCAM.raw"])
    assert_close(up_to_sign(eigen_grad, peer["EigenGradCAM.raw"]), peer["EigenGradCAM.raw"])
    assert_close(outstanding, peer["FEM.raw"])


def by_svd(x):
    """X v1 of one image (h, w, C), by numpy's full decomposition."""
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    rows = rows - rows.mean(0)
    return (rows @ np.linalg.svd(rows)[2][0]).reshape(x.shape[:2])


@pytest.mark.parametrize("channels", [6, 40])  # fewer than the 20 cells, and more
def test_principal_map_is_the_projection_on_the_first_singular_vector(channels, assert_close):
    x = normal(3, 5, 4, channels)
    expected = np.stack([by_svd(image) for image in x])
    assert_close(up_to_sign(principal_map(x), expected), expected, 1e-5)


def test_sign_and_map_survive_permutation_offset_and_scale(a, assert_close):
    model, maps = Given(), jax.jit(eigen_cam)
    expected = maps(model, a)
    peaks = np.abs(expected).max((1, 2))
    assert_close(np.asarray(expected).max((1, 2)), peaks, 1e-6)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(6)
        assert_close(maps(model, a[..., order]), expected, 1e-5)
    assert_close(maps(model, a + jnp.arange(6.0)), expected, 1e-5)
    # squares of such values are 0 in float32
    assert_close(1e25 * maps(model, 1e-25 * a), expected, 1e-5)
    assert_close(maps(model, a[:, :, ::-1]), expected[:, :, ::-1], 1e-5)


def test_eigen_grad_cam_agrees_with_the_sum_that_it_replaces(a, assert_close):
    model, method = Given(), jax.jit(eigen_grad_cam)
    activations, gradients = jax.jit(activations_and_gradients)(model, a, LABELS)
    maps = method(model, a, LABELS)
    contributions = np.asarray(gradients) * np.asarray(activations)
    hires = contributions.sum(-1)
    assert ((maps * (hires - hires.mean((1, 2), keepdims=True))).sum((1, 2)) > 0).all()
    against = jax.jit(partial(eigen_grad_cam, targets=lambda logits: -logits[1]))(model, a)
    assert_close(against, -method(model, a, jnp.array([1, 1])), 1e-5)
    assert_close(jax.jit(eigen_smooth)(np.float32(1e-30) * contributions) * 1e30, maps, 1e-5)
    # one channel is its own principal component
    one = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    assert_close(jax.jit(eigen_smooth)(-one), 5.5 - one[..., 0], 1e-6)


@pytest.mark.slow
def test_seg_eigen_cam_takes_the_gradient_without_its_sign(a, assert_close):
    activations, gradients = activations_and_gradients(Given(), a, LABELS)
    assert_close(seg_eigen_cam(Given(), a, LABELS), principal_map(jnp.abs(gradients) * activations), 1e-6)


def test_linear_kernel_is_eigen_cam(a, assert_close):
    assert_close(kpca_cam(Given(), a, kernel="linear"), eigen_cam(Given(), a), 1e-5)


@pytest.mark.parity
def test_factors_are_as_good_as_those_of_sklearn(a):
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = np.abs(a.reshape(-1, 6))
    peer = decomposition.NMF(3, init="random", random_state=0, max_iter=1000)
    expected = np.linalg.norm(x - peer.fit_transform(x) @ peer.components_)
    h, w = non_negative_factors(jnp.asarray(x), 3, steps=100, key=jax.random.key(0))
    assert jnp.linalg.norm(x - h @ w) < 1.01 * expected


@pytest.mark.parity
@pytest.mark.parametrize("kernel", ["linear", "sigmoid", "poly", "rbf"])
@pytest.mark.parametrize("gamma", [None, 0.3])
def test_kernels_are_those_of_sklearn(a, kernel, gamma, assert_close):
    decomposition = pytest.importorskip("sklearn.decomposition")
    maps = kpca_cam(Given(), a, kernel=kernel, gamma=gamma)
    for x, found in zip(np.asarray(a, np.float64).reshape(2, 20, 6), maps, strict=True):
        pca = decomposition.KernelPCA(1, kernel=kernel, gamma=gamma)
        expected = pca.fit_transform(x - x.mean(0)).reshape(1, 5, 4)
        assert_close(up_to_sign(found[None], expected), expected, 1e-4)


def test_kernel_pca_by_hand(assert_close):
    # Two cells at +-1 on one channel: the centred sigmoid kernel is [[d, -d], [-d, d]], d = (tanh 2 - tanh 0) / 2.
    x = jnp.array([[[[1.0], [-1.0]]]])
    d = np.sqrt((np.tanh(2) - np.tanh(0)) / 2)
    assert_close(np.abs(kpca_cam(Given(), x)), [[[d, d]]], 1e-5)


def test_fem_of_xplique_by_its_own_fixture():
    channels = jnp.stack([jnp.ones((2, 2)), jnp.array([[0.0, 0.0], [0.0, 4.0]])], -1)[None]
    np.testing.assert_allclose(fem(Given(), channels, k=1, form="mask"), [[[1, 1], [1, 2]]])


def test_fem_of_pytorch_grad_cam_by_hand():
    # Of ten cells one stands out, in the second channel, by 10 > 1 + 2 * 3.
    channels = jnp.zeros((1, 2, 5, 2)).at[..., 0].set(jnp.arange(10.0).reshape(2, 5)).at[0, 1, 4, 1].set(10)
    np.testing.assert_allclose(fem(Given(), channels), [[[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]], atol=1e-6)


@pytest.mark.parametrize("arguments", [{"kernel": "cosine"}, {"form": "both"}, {"components": 0}])
def test_unknown_forms_are_refused(a, arguments):
    method = {"kernel": kpca_cam, "form": fem, "components": deep_feature_factorisation}[next(iter(arguments))]
    with pytest.raises(ValueError, match=next(iter(arguments))):
        method(Given(), a, **arguments)


factorise = jax.jit(deep_feature_factorisation, static_argnames=("components", "joint"))


def test_factorisation_finds_parts_that_do_not_overlap(assert_close):
    concepts = jnp.array([[0.0, 3.0, 0.0, 1.0], [2.0, 0.0, 0.0, 0.5]])
    maps = jnp.zeros((2, 2, 4, 4)).at[:, 0, :2].set(1).at[0, 1, 2:, 1:3].set(0.5).at[1, 1, 3].set(1)
    found = factorise(Given(), jnp.einsum("bnhw,nc->bhwc", maps, concepts), components=2)
    assert found.error < 1e-4
    assert_close(found.maps, maps, 1e-3)
    assert_close(found.concepts, concepts, 1e-3)


@pytest.mark.slow
def test_factorisation_shifts_channels_and_back(a, assert_close):
    found = factorise(Given(), a, components=6)
    offset = a.min((0, 1, 2))
    rebuilt = jnp.einsum("bnhw,nc->bhwc", found.maps, found.concepts - offset) + offset
    assert found.maps.shape == (2, 6, 5, 4)
    assert found.maps.min() >= 0
    assert_close(found.maps.max((0, 2, 3)), np.ones(6), 1e-5)
    shifted = jnp.linalg.norm(a - offset)
    assert_close(jnp.linalg.norm(rebuilt - a) / shifted, found.error, 1e-3)
    again = factorise(Given(), a, components=6, key=jax.random.key(0))
    np.testing.assert_array_equal(again.maps, found.maps)


@pytest.mark.slow
def test_more_steps_are_never_worse(a):
    x = np.abs(a.reshape(-1, 6))
    errors = []
    for steps in (1, 4, 16):
        h, w = jax.jit(partial(non_negative_factors, components=3, steps=steps))(x, key=jax.random.key(0))
        errors.append(np.linalg.norm(x - np.asarray(h) @ np.asarray(w)))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.slow
def test_images_factorised_alone_do_not_meet(a, assert_close):
    together = factorise(Given(), a, components=3, joint=False)
    alone = factorise(Given(), a[1:], components=3, joint=False)
    assert together.concepts.shape == (2, 3, 6)
    assert_close(together.maps[1:], alone.maps, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("space", [(20,), (5, 2, 2)])
def test_factors_of_any_space_are_those_of_its_cells(a, space, assert_close):
    class Anywhere(Given):
        def features(self, images):
            return images.reshape(2, *space, 6)

    expected, factors = factorise(Given(), a, components=3), factorise(Anywhere(), a, components=3)
    assert factors.maps.shape == (2, 3, *space)
    assert_close(factors.maps.reshape(2, 3, -1), expected.maps.reshape(2, 3, -1), 1e-3)

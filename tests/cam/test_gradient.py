"""Closed forms and identities that the gradient methods must satisfy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam import explain, postprocess
from dcls_jax.cam.gradient import (
    activations_and_gradients,
    cam,
    elementwise,
    finer_cam,
    grad_cam,
    grad_cam_pp,
    hires_cam,
    integrated_grad_cam,
    layer_cam,
    random_cam,
    shapley_cam,
    smooth_grad_cam_pp,
    threshold_grad_cam,
    xgrad_cam,
)
from dcls_jax.cam.targets import Contrast, Negative, Probability, Rest, scores
from dcls_jax.eval.study import study_maps
from tests.cam.toys import ConvNet, Cubic, Flattened, PooledLinear
from tests.conftest import normal


@pytest.fixture
def images():
    return normal(4, 6, 5, 3)


LABELS = jnp.array([0, 4, 2, 2])
KEY = jax.random.key(7)


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


@pytest.mark.slow
def test_study_threshold_map_of_a_dead_image_is_its_floor():
    model = PooledLinear()
    maps = study_maps(model, jnp.zeros((1, 4, 4, 3)), jnp.array([1]), method="threshold_grad_cam", size=8)
    np.testing.assert_allclose(maps, 0.3)


@pytest.mark.parametrize("method", [grad_cam, hires_cam, xgrad_cam, shapley_cam])
def test_pooled_linear_heads_have_one_map(method, images, assert_close):
    model = PooledLinear()
    assert_close(30 * jax.jit(method)(model, images, LABELS), cam(model, images, LABELS), 1e-5)


def test_cam_of_all_classes_sums_to_the_logits(images, assert_close):
    model = PooledLinear()
    maps = jax.jit(cam)(model, images)
    assert_close(maps, jnp.einsum("bhwk,kc->bchw", images, model.fc.kernel[...]), 1e-6)
    assert_close(maps.mean((2, 3)) + model.fc.bias[...], model.head(images), 1e-5)
    assert_close(cam(model, images, LABELS), maps[jnp.arange(4), LABELS], 1e-6)
    soft = jnp.abs(normal(4, 5))
    assert_close(cam(model, images, soft), jnp.einsum("bc,bchw->bhw", soft, maps), 1e-5)


@pytest.mark.parametrize(
    ("model", "targets"), [(Cubic(), None), (Cubic(), LABELS), (ConvNet(), None), (PooledLinear(), Probability(LABELS))]
)
def test_cam_refuses_what_is_not_affine(images, model, targets):
    for run in (cam, jax.jit(cam)):
        with pytest.raises(ValueError, match="affine score, which it is not from layer 'features'"):
            run(model, images, targets)


def test_hires_cam_of_a_flattened_linear_head_sums_to_the_logit(images, assert_close):
    model, images = Flattened(), images[:, :4, :4]
    logits = scores(model.head(images), LABELS) - LABELS
    assert_close(hires_cam(model, images, LABELS).sum((1, 2)), logits, 1e-5)
    assert jnp.abs(grad_cam(model, images, LABELS).sum((1, 2)) - logits).max() > 0.1


@pytest.mark.parametrize("model", [Cubic(), ConvNet(activation=jax.nn.gelu)])
def test_xgrad_cam_conserves_the_sum_of_gradient_times_activation(images, model, assert_close):
    maps = [jax.jit(method)(model, images, LABELS).sum((1, 2)) for method in (xgrad_cam, hires_cam)]
    assert_close(maps[0], maps[1], 1e-4)


def test_xgrad_cam_of_a_channel_that_cancels_is_finite(images, assert_close):
    signed = images.at[..., 1].set(jnp.where(jnp.arange(6)[:, None] % 2 == 0, 1.0, -1.0))
    model = Cubic()
    a, g = activations_and_gradients(model, signed, LABELS)
    rest = jax.jit(xgrad_cam)(model, signed.at[..., 1].set(0), LABELS)
    assert_close(
        jax.jit(xgrad_cam)(model, signed, LABELS) - rest, g[..., 1].mean((1, 2), keepdims=True) * a[..., 1], 1e-4
    )


def test_layer_cam_takes_positive_gradients_only(images, assert_close):
    model = PooledLinear()
    weights = jax.nn.relu(model.fc.kernel[...].T[LABELS]) / 30
    assert_close(layer_cam(model, images, LABELS), jnp.einsum("bhwk,bk->bhw", images, weights), 1e-6)
    positive = jnp.abs(images)
    maps = layer_cam(Cubic(), positive, LABELS)
    assert (maps >= 0).all()
    assert (maps >= jax.nn.relu(hires_cam(Cubic(), positive, LABELS)) - 1e-7).all()


def test_elementwise_is_threshold_where_the_gradient_is_constant(images, assert_close):
    assert_close(elementwise(PooledLinear(), images, LABELS), threshold_grad_cam(PooledLinear(), images, LABELS), 1e-6)


def test_grad_cam_pp_of_a_pooled_linear_head_has_closed_forms(images, assert_close):
    model, a = PooledLinear(), jnp.abs(images)
    w = model.fc.kernel[...].T[LABELS] / 30
    equation_19 = 30 * jax.nn.relu(w) / (2 + a.sum((1, 2)) * w)
    assert_close(grad_cam_pp(model, a, LABELS), jnp.einsum("bhwk,bk->bhw", a, equation_19), 1e-5)
    authors = grad_cam_pp(model, a, LABELS, normalised=True)
    assert_close(authors, jnp.einsum("bhwk,bk->bhw", a, jax.nn.relu(w)), 1e-5)
    assert_close(authors, layer_cam(model, a, LABELS), 1e-5)


def test_epsilon_of_grad_cam_pp_swallows_small_gradients(images, assert_close):
    model, a = PooledLinear(), 1e-3 * jnp.abs(images)  # S(A) g is small: the map is linear in the gradient
    small = 1e-2 * jax.nn.one_hot(LABELS, 5)
    exact = grad_cam_pp(model, a, small)
    assert_close(exact, 1e-2 * grad_cam_pp(model, a, LABELS), 0.02)
    assert grad_cam_pp(model, a, small, epsilon=1e-6).max() < 0.5 * exact.max()


def test_smooth_grad_cam_pp_without_noise_is_grad_cam_pp(images, assert_close):
    model = Cubic()
    smooth = jax.jit(partial(smooth_grad_cam_pp, noise=0.0))(model, images, LABELS, key=KEY)
    assert_close(smooth, grad_cam_pp(model, images, LABELS), 1e-5)


def test_noise_is_that_of_the_key_alone(images, assert_close):
    smooth = jax.jit(partial(smooth_grad_cam_pp, Cubic(), samples=2))
    keys = jax.random.split(KEY, 4)
    own = smooth(images, LABELS, key=keys)
    alike = smooth(images, LABELS, key=keys[1])
    assert_close(own[1], alike[1], 1e-5)
    assert jnp.abs(own[0] - alike[0]).max() > 1e-3


def test_random_cam_weighs_channels_by_its_key(images, assert_close):
    weights = jax.random.uniform(KEY, (3,), minval=-1, maxval=1)
    assert_close(random_cam(PooledLinear(), images, key=KEY), images @ weights, 1e-6)
    own = random_cam(PooledLinear(), images, LABELS, key=jax.random.split(KEY, 4))
    assert_close(own[1:2], random_cam(PooledLinear(), images[1:2], key=jax.random.split(KEY, 4)[1]), 1e-6)


def test_shapley_cam_subtracts_half_the_curvature(images, assert_close):
    # y = sum w a^3 / Z: g = 3 w a^2 / Z and H A = 6 w a^2 / Z, so that g - H A / 2 vanishes
    assert jnp.abs(shapley_cam(Cubic(), images, LABELS)).max() < 1e-6

    def squares(logits):
        return logits[3] ** 2

    # y = (w . <a> + b)^2: g = 2 y' w / Z and H A = 2 (w . <a>) w / Z
    model = PooledLinear()
    w, linear = model.fc.kernel[:, 3], images.mean((1, 2)) @ model.fc.kernel[:, 3]
    expected = (2 * (linear + 3) - linear)[:, None, None] * (images @ w) / 30
    assert_close(shapley_cam(model, images, squares), expected, 1e-5)


def test_shapley_cam_is_grad_cam_for_piecewise_linear_heads(images, assert_close):
    model = ConvNet()
    shapley, plain = jax.jit(shapley_cam), jax.jit(grad_cam)
    assert_close(shapley(model, images, LABELS), plain(model, images, LABELS), 1e-6)
    for curved in (Probability(LABELS), Rest(LABELS)):
        expected = plain(model, images, curved)
        assert jnp.abs(shapley(model, images, curved) - expected).max() > 1e-3 * jnp.abs(expected).max()


def test_integrated_grad_cam_of_a_homogeneous_network_is_grad_cam(images, assert_close):
    # The activation grows with the step, t / m of the image's, and the gradient stays: mean of t / m is (m - 1) / 2m.
    model = ConvNet(bias=False)
    maps = jax.jit(partial(integrated_grad_cam, steps=8))(model, images, LABELS)
    assert_close(maps, 7 / 16 * jax.nn.relu(jax.jit(grad_cam)(model, images, LABELS)), 1e-5)


def test_integrated_grad_cam_counts_from_its_baselines(images, assert_close):
    model = ConvNet()
    run = jax.jit(integrated_grad_cam, static_argnames=("steps", "activation_baseline"))
    assert not run(model, images, LABELS, steps=2, baseline=images, activation_baseline=None).any()
    # one step is the baseline itself
    grey = run(model, images, LABELS, steps=1, baseline=0.5)
    assert_close(grey, jax.nn.relu(jax.jit(grad_cam)(model, jnp.full_like(images, 0.5), LABELS)), 1e-5)
    coarse, fine = (run(model, images, LABELS, steps=steps) for steps in (100, 200))
    assert_close(coarse, fine, 0.02)
    with pytest.raises(ValueError, match=r"steps \(=0\)"):
        integrated_grad_cam(model, images, LABELS, steps=0)


def test_finer_cam_contrasts_with_the_nearest_classes(images, assert_close):
    model = PooledLinear()
    logits = np.asarray(model.head(images))
    references = np.argsort(np.abs(logits - logits[np.arange(4), LABELS][:, None]), axis=1)[:, 1:3]
    plain, finer = jax.jit(grad_cam), jax.jit(finer_cam, static_argnames=("count", "weighted", "strength", "base"))
    maps = [plain(model, images, targets) for targets in (LABELS, *references.T)]
    unweighted = partial(finer, model, images, LABELS, count=2, weighted=False)
    assert_close(unweighted(strength=0.6), maps[0] - 0.3 * (maps[1] + maps[2]), 1e-5)
    assert_close(unweighted(strength=0.0), maps[0], 1e-6)
    weighted = finer(model, images, LABELS, count=2, base=layer_cam)
    contrast = Contrast(LABELS, jnp.asarray(references), weighted=True)
    assert_close(weighted, jax.jit(layer_cam)(model, images, contrast), 1e-6)
    with pytest.raises(ValueError, match="must be int labels"):
        finer_cam(model, images, jax.nn.one_hot(LABELS, 5))


def test_counterfactual_maps(images, assert_close):
    model = Cubic()
    assert_close(grad_cam(model, images, Negative(LABELS)), -grad_cam(model, images, LABELS), 1e-6)
    against = layer_cam(model, images, Negative(LABELS))
    assert_close(layer_cam(model, images, LABELS) - against, hires_cam(model, images, LABELS), 1e-5)


@pytest.mark.parametrize("method", [grad_cam, xgrad_cam, grad_cam_pp])
def test_space_may_have_any_number_of_axes(method, images, assert_close):
    class Anywhere(Cubic):
        def head(self, activations):
            return self.fc((activations**3).mean(tuple(range(1, activations.ndim - 1))))

    run = jax.jit(method)
    maps = run(Anywhere(), images, LABELS)
    assert_close(run(Anywhere(), images.reshape(4, 30, 3), LABELS).reshape(4, 6, 5), maps, 1e-5)
    assert_close(run(Anywhere(), images.reshape(4, 3, 2, 5, 3), LABELS).reshape(4, 6, 5), maps, 1e-5)

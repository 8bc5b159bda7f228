"""Infidelity and max-sensitivity against captum's published values, closed forms and loops over samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam import from_functions, grad_cam, input_x_gradient, integrated_gradients
from dcls_jax.cam.pixels import pixel_gradient
from dcls_jax.eval import faithfulness
from tests.cam.toys import ConvNet, PooledLinear
from tests.conftest import normal, slow

KEY = jax.random.key(0)


def itself(_, x):
    return x


def number(output):
    return output.reshape(())


def _two_inputs(_, x):
    """Captum's BasicModel2: relu(relu(a) - 1 - relu(b))."""
    a, b = x[:, 0, 0, 0], x[:, 0, 0, 1]
    return jax.nn.relu(jax.nn.relu(a) - 1 - jax.nn.relu(b))


def _layers(_, x):
    """Captum's BasicModel_MultiLayer at the output (0, 1, 1): four sums of the input, ReLU, their sum; eight times."""
    hidden = jax.nn.relu(x.sum((1, 2, 3))[:, None] + jnp.array([-10.0, 1, 1, 1]))
    return 8 * (hidden.sum(1) - 1)


TWO_INPUTS = from_functions(itself, _two_inputs, ())
LAYERS = from_functions(itself, _layers, ())
ADDED = jnp.arange(1.0, 13.0).reshape(4, 1, 1, 3)  # to the input in captum's test, and to its baseline of 1


def tiny_steps(_, images):
    step = jnp.array([0.0009, 0.0121])
    return jnp.broadcast_to(step, images.shape), images - step


def to_zero(_, images):
    return jnp.ones_like(images), jnp.zeros_like(images)


def to_baseline(_, images):
    return jnp.ones_like(images), 1 + ADDED


def some_to_zero(key, images):
    share = jax.random.bernoulli(key, 0.5, images.shape).astype(images.dtype)
    return share, (1 - share) * images


def noise(key, images):
    step = 0.3 * jax.random.normal(key, images.shape)
    return step, images - step


def test_a_gradient_foretells_small_steps_of_captums_model():
    images = jnp.tile(jnp.array([3.0, 1.0]).reshape(1, 1, 1, 2), (3, 1, 1, 1))
    gradients = jnp.tile(jnp.array([1.0, -1.0]).reshape(1, 1, 1, 2), (3, 1, 1, 1))
    result = faithfulness.infidelity(TWO_INPUTS, images, gradients, number, perturb=tiny_steps, key=KEY)
    np.testing.assert_allclose(result, np.zeros(3), atol=1e-12)


@pytest.mark.parametrize("perturb", [to_zero, some_to_zero])
def test_integrated_gradients_are_complete_in_one_linear_region(perturb):
    images = jnp.array([[1.0, 2.5, 3.3]]).reshape(1, 1, 1, 3)  # captum's: never beyond 10, where a unit begins
    phi = integrated_gradients(LAYERS, images, number, reduce=lambda terms: terms)
    result = faithfulness.infidelity(LAYERS, images, phi, number, perturb=perturb, samples=3, key=KEY)
    np.testing.assert_allclose(result, [0], atol=1e-8)


def test_the_error_of_an_integral_is_captums_published_infidelity():
    images = jnp.arange(1.0, 13.0).reshape(4, 1, 1, 3) + ADDED
    phi = integrated_gradients(LAYERS, images, number, baseline=1 + ADDED, reduce=lambda terms: terms)
    result = faithfulness.infidelity(LAYERS, images, phi, number, perturb=to_baseline, samples=3, key=KEY)
    np.testing.assert_allclose(result, [0.10686, 0, 0, 0], atol=1e-5)


def test_a_linear_models_gradient_foretells_everything():
    model, images = PooledLinear(), normal(3, 4, 4, 3)
    phi = pixel_gradient(model, images, jnp.array([0, 1, 4]))
    result = faithfulness.infidelity(model, images, phi, [0, 1, 4], perturb=noise, key=KEY)
    np.testing.assert_allclose(result, np.zeros(3), atol=1e-10)


@pytest.mark.parametrize(("chunk", "normalise"), [(1, False), (32, True), slow(1, True), slow(32, False)])
def test_infidelity_is_the_mean_over_samples(normalise, chunk):
    model, images, labels = ConvNet(), normal(2, 6, 6, 3), jnp.array([1, 3])
    phi = pixel_gradient(model, images, labels)
    keys = jax.random.split(KEY, 5)
    y = model.head(model.features(images))[jnp.arange(2), labels]
    foretold, falls = [], []
    for key in keys:
        difference, perturbed = noise(key, images)
        foretold.append((difference * phi).sum((1, 2, 3)))
        falls.append(y - model.head(model.features(perturbed))[jnp.arange(2), labels])
    foretold, falls = np.array(foretold, np.float64), np.array(falls, np.float64)
    if normalise:
        foretold *= (foretold * falls).mean(0) / (foretold**2).mean(0)
    options = {"perturb": noise, "samples": 5, "normalise": normalise, "key": KEY, "chunk": chunk}
    result = faithfulness.infidelity(model, images, phi, labels, **options)
    np.testing.assert_allclose(result, ((foretold - falls) ** 2).mean(0), rtol=1e-4)


def test_normalised_infidelity_does_not_depend_on_the_norm():
    model, images = ConvNet(), normal(2, 6, 6, 3)
    phi = pixel_gradient(model, images, jnp.array([0, 0]))
    options = {"perturb": noise, "normalise": True, "key": KEY}
    one, scaled, none = (
        faithfulness.infidelity(model, images, factor * phi, [0, 0], **options) for factor in (1, 100, 0)
    )
    np.testing.assert_allclose(one, scaled, rtol=1e-4)
    assert (np.asarray(none) > np.asarray(one)).all()  # phi of 0 foretells nothing
    assert np.isfinite(none).all()


@pytest.mark.slow
def test_with_a_key_for_each_image_each_is_perturbed_alone():
    model, images, labels = ConvNet(), normal(3, 6, 6, 3), jnp.array([1, 3, 0])
    phi, keys = pixel_gradient(model, images, labels), jax.random.split(KEY, 3)
    whole = faithfulness.infidelity(model, images, phi, labels, perturb=noise, key=keys)
    for i in range(3):
        rows = slice(i, i + 1)
        alone = faithfulness.infidelity(model, images[rows], phi[rows], labels[rows], perturb=noise, key=keys[rows])
        np.testing.assert_allclose(alone[0], whole[i], rtol=1e-5)


def test_nothing_changes_inside_one_linear_region():
    images = jnp.tile(jnp.array([3.0, 1.0]).reshape(1, 1, 1, 2), (4, 1, 1, 1))
    result = faithfulness.max_sensitivity(TWO_INPUTS, images, pixel_gradient, number, key=KEY)
    np.testing.assert_array_equal(result, np.zeros(4))


def test_a_map_that_is_the_image_changes_as_much_as_the_image():
    images = jnp.stack([jnp.ones((4, 4, 3)), jnp.zeros((4, 4, 3))])
    result = faithfulness.max_sensitivity(
        ConvNet(), images, lambda model, x, targets: x, [0, 0], radius=0.5, samples=40, key=KEY
    )
    assert 0.25 < result[0] < 0.5  # the root of the mean square of 48 numbers within 0.5 of 0: about 0.29
    np.testing.assert_allclose(result[1], result[0] * np.sqrt(48), rtol=1e-6)  # of a zero norm, the change itself


@pytest.mark.parametrize(
    ("chunk", "explain"),
    [(7, grad_cam), *(slow(n, f) for n, f in [(1, grad_cam), (1, input_x_gradient), (7, input_x_gradient)])],
)
def test_max_sensitivity_is_the_largest_over_samples(explain, chunk):
    model, images, labels = ConvNet(), normal(2, 6, 6, 3), jnp.array([1, 3])
    phi = explain(model, images, labels)
    changes = []
    for key in jax.random.split(KEY, 4):
        near = images + 0.3 * jax.random.uniform(key, images.shape[1:], minval=-1, maxval=1)
        change = explain(model, near, labels) - phi
        changes.append([np.linalg.norm(c) / np.linalg.norm(p) for c, p in zip(change, phi, strict=True)])
    options = {"radius": 0.3, "samples": 4, "key": KEY, "chunk": chunk}
    result = faithfulness.max_sensitivity(model, images, explain, labels, **options)
    np.testing.assert_allclose(result, np.max(changes, 0), rtol=1e-4)
    assert (np.asarray(result) > 0).all()


@pytest.mark.slow
def test_the_class_is_the_predicted_one_unless_given():
    model, images = ConvNet(), normal(2, 6, 6, 3)
    labels = model.head(model.features(images)).argmax(1)
    phi = pixel_gradient(model, images, labels)
    for targets in (None, labels):
        fidelity = faithfulness.infidelity(model, images, phi, targets, perturb=noise, key=KEY)
        sensitivity = faithfulness.max_sensitivity(model, images, grad_cam, targets, key=KEY)
        if targets is None:
            expected = fidelity, sensitivity
    np.testing.assert_allclose((fidelity, sensitivity), expected, rtol=1e-5)


IMAGES = np.zeros((2, 6, 6, 3), np.float32)
PHI_WRONG = [
    ({"attributions": IMAGES[..., 0]}, r"attributions have shape \(2, 6, 6\), expected that of the images"),
    ({"attributions": np.full_like(IMAGES, np.nan)}, r"attributions of images 0, 1 are not finite"),
    ({"samples": 0}, r"samples \(=0\) must be at least 1"),
    ({"targets": [0, -1]}, r"targets hold label -1"),
]


@pytest.mark.parametrize(("wrong", "message"), PHI_WRONG)
def test_infidelity_refuses_what_does_not_fit(wrong, message):
    given = {"attributions": IMAGES, "targets": [0, 1], "perturb": noise, "key": KEY, **wrong}
    with pytest.raises(ValueError, match=message):
        faithfulness.infidelity(ConvNet(), IMAGES, **given)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"radius": -1.0}, r"radius \(=-1.0\) must not be"), ({"samples": 0}, r"samples \(=0\)")]
)
def test_max_sensitivity_refuses_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.max_sensitivity(ConvNet(), IMAGES, grad_cam, [0, 1], key=KEY, **wrong)

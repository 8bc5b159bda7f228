"""Guided backpropagation and FullGrad, which both run a model under rules of their own."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam.fullgrad import full_grad, full_gradients
from dcls_jax.cam.gradient import grad_cam
from dcls_jax.cam.guided import guide, guided_backprop, guided_grad_cam
from dcls_jax.cam.targets import Probability, scores
from tests import golden
from tests.cam.toys import ConvNet, PooledLinear
from tests.conftest import initialiser, normal

LABELS = jnp.array([0, 4])


@pytest.fixture
def images():
    return normal(2, 6, 5, 3)


@jax.jit
def plain_gradient(model, images):
    return jax.grad(lambda x: scores(model.head(model.features(x)), LABELS).sum())(images)


class Normalised(nnx.Module):
    """All that a piecewise linear network may have: padding, pooling, shortcuts, batch normalisation, leaky ReLU."""

    def __init__(self):
        draw = initialiser(2)
        random = {"bias_init": draw, "rngs": nnx.Rngs(0)}
        self.conv1 = nnx.Conv(3, 4, (3, 3), kernel_init=draw, **random)
        self.norm = nnx.BatchNorm(4, use_running_average=True, **random)
        self.norm.mean[...] = jnp.array([0.3, -0.2, 0.1, 0.5])
        self.norm.var[...] = jnp.array([0.5, 2.0, 1.0, 3.0])
        self.conv2 = nnx.Conv(4, 4, (1, 1), kernel_init=draw, **random)
        self.fc = nnx.Linear(8, 5, kernel_init=draw, **random)

    def features(self, images):
        x = jax.nn.relu(self.norm(self.conv1(images)))
        return nnx.max_pool(x, (2, 2), strides=(1, 1))

    def head(self, activations):
        x = (
            activations
            + jax.nn.leaky_relu(self.conv2(jnp.pad(activations, ((0, 0), (1, 0), (1, 0), (0, 0)))))[:, 1:, 1:]
        )
        pooled = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=1)
        return self.fc(jnp.where(pooled > 0.1, pooled - 0.1, 0))


@pytest.mark.parametrize("relu", [jax.nn.relu, jax.jit(jax.nn.relu), jax.checkpoint(jax.nn.relu), nnx.relu])
def test_guided_gradient_passes_where_input_and_gradient_are_positive(relu):
    x = jnp.array([-1.0, 0.0, 1.0, 2.0, 3.0])
    g = jnp.array([1.0, 1.0, 1.0, -1.0, 2.0])
    value, pull_back = jax.vjp(guide(relu), x)
    np.testing.assert_array_equal(value, [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(pull_back(g)[0], [0, 0, 1, 0, 2])


def test_guided_relu_is_reached_inside_others(assert_close):
    x = jnp.array([-1.0, 1.0, 2.0, 7.0])
    # squared: 2 relu(x) first, then the gate; ReLU6: closed above 6 too
    assert_close(jax.grad(lambda x: guide(lambda x: jnp.square(jax.nn.relu(x)))(x).sum())(x), [0, 2, 4, 14], 1e-6)
    assert_close(jax.grad(lambda x: guide(lambda x: -jnp.square(jax.nn.relu(x)))(x).sum() + x.sum())(x), [1] * 4, 1e-6)
    assert_close(jax.grad(lambda x: guide(jax.nn.relu6)(x).sum())(x), [0, 1, 1, 0], 1e-6)


def test_guided_backprop_of_a_two_layer_net(images, assert_close):
    """By hand: every layer's gradient through the gates, in the order of the network."""

    @jax.jit
    def by_hand(model):
        z1 = model.conv1(images)
        z2, to_first = jax.vjp(model.conv2, jax.nn.relu(z1))
        weights = model.fc.kernel[...].T[LABELS][:, None, None] / (z2.shape[1] * z2.shape[2])
        g2 = jax.nn.relu(jnp.broadcast_to(weights, z2.shape)) * (z2 > 0)
        g1 = jax.nn.relu(to_first(g2)[0]) * (z1 > 0)
        return jax.vjp(model.conv1, images)[1](g1)[0]

    model = ConvNet()
    expected = by_hand(model)
    assert_close(jax.jit(guided_backprop)(model, images, LABELS), expected, 1e-5)
    assert jnp.abs(expected - plain_gradient(model, images)).max() > 0.1 * jnp.abs(expected).max()


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, jnp.tanh])
def test_without_relu_guided_backprop_is_the_gradient(images, activation, assert_close):
    model = ConvNet(activation=activation)
    assert_close(jax.jit(guided_backprop)(model, images, LABELS), jax.jit(plain_gradient)(model, images), 1e-5)


def test_guided_backprop_refuses_what_it_cannot_reach(images):
    scanned = SimpleNamespace(
        features=lambda x: jax.lax.scan(lambda c, _: (jax.nn.relu(c), None), x, None, length=2)[0],
        head=lambda a: a.mean((1, 2)),
    )
    with pytest.raises(ValueError, match="cannot reach a ReLU inside scan"):
        guided_backprop(scanned, images, jnp.array([0, 1]))


def test_guided_grad_cam_is_zero_where_the_map_is(images, assert_close):
    model = ConvNet()
    maps = jax.nn.relu(jax.jit(grad_cam)(model, images, LABELS))
    guided = jax.jit(guided_grad_cam)(model, images, LABELS)
    assert_close(guided, jax.jit(guided_backprop)(model, images, LABELS) * maps[..., None], 1e-6)  # nothing to resize
    assert (maps == 0).any()
    assert not guided[maps == 0].any()


@pytest.mark.parametrize("model", [Normalised(), ConvNet(), ConvNet(bias=False)])
def test_terms_of_full_grad_sum_to_the_score(model, images, assert_close):
    terms = jax.jit(full_gradients)(model, images, LABELS)
    logits = jax.jit(lambda model: scores(model.head(model.features(images)), LABELS))(model)
    assert_close(sum(np.asarray(term).sum(tuple(range(1, term.ndim))) for term in terms), logits, 1e-5)
    assert_close(terms[0], np.asarray(images) * np.asarray(plain_gradient(model, images)), 1e-5)


@pytest.mark.slow
def test_terms_of_a_resnet_with_dcls_sum_to_the_score(assert_close):
    model, _ = golden.load("resnet_dcls_v1")
    images = normal(2, 32, 32, 3)
    terms, logits = jax.jit(lambda model, x: (full_gradients(model, x, LABELS), model(x)))(model, images)
    assert len(terms) == 1 + 20 + 1  # pixels, batch normalisations, classifier
    assert_close(sum(term.sum(tuple(range(1, term.ndim))) for term in terms), scores(logits, LABELS), 1e-4)


@pytest.mark.slow
def test_full_grad_counts_each_bias_once(images, assert_close):
    model = Normalised()
    terms = jax.jit(full_gradients)(model, images, LABELS)
    # the image, convolution, its normalisation, second convolution, the 0.1 before the ReLU, the classifier
    assert [term.shape[1:] for term in terms] == [(6, 5, 3), *[(6, 5, 4)] * 3, (8,), (5,)]
    # as the authors' extractor has them: the convolution's own, and -mean * scale / deviation + beta
    norm = model.norm
    implicit = norm.bias[...] - norm.mean[...] * norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)

    def with_offsets(before, after):
        x = jax.nn.relu(norm(model.conv1(images) + before) + after)
        return scores(model.head(nnx.max_pool(x, (2, 2), strides=(1, 1))), LABELS).sum()

    before, after = jax.grad(with_offsets, (0, 1))(jnp.zeros_like(terms[1]), jnp.zeros_like(terms[1]))
    assert_close(terms[1], model.conv1.bias[...] * before, 1e-5)
    assert_close(terms[2], implicit * after, 1e-5)


def test_full_grad_without_biases_is_input_times_gradient(images, assert_close):
    model = ConvNet(bias=False)
    product = jnp.abs(images * plain_gradient(model, images))
    low, high = product.min((1, 2, 3), keepdims=True), product.max((1, 2, 3), keepdims=True)
    assert_close(jax.jit(full_grad)(model, images, LABELS), ((product - low) / (high - low)).sum(-1), 1e-5)


@pytest.mark.slow
def test_full_grad_maps_are_finite_at_image_size(images):
    for odd in (images, jnp.zeros_like(images), images.astype(jnp.bfloat16)):
        maps = jax.jit(full_grad)(Normalised(), odd, LABELS)
        assert maps.shape == (2, 6, 5)
        assert jnp.isfinite(maps).all()
        assert (maps >= 0).all()


@pytest.mark.slow
def test_full_grad_counts_what_it_does_not_differentiate(images, assert_close):
    def steps(x):  # piecewise constant and added: a bias
        return jax.nn.relu(x + (x > 0.5) + x.astype(jnp.int32).astype(x.dtype))

    model = ConvNet(activation=steps)
    terms = jax.jit(full_gradients)(model, images, LABELS)
    total = sum(term.sum(tuple(range(1, term.ndim))) for term in terms)
    assert_close(total, scores(model.head(model.features(images)), LABELS), 1e-5)


@pytest.mark.parametrize(
    ("model", "targets", "operation"),
    [
        (ConvNet(activation=jax.nn.gelu), LABELS, "integer_pow|tanh|mul"),
        (ConvNet(activation=jax.nn.silu), LABELS, "logistic"),
        (ConvNet(activation=jax.nn.relu6), LABELS, "min"),
        (ConvNet(activation=lambda x: jnp.where(x > 0, x, -1.0)), LABELS, "select_n"),
        (PooledLinear(), Probability(LABELS), "max|exp"),
    ],
)
def test_full_grad_refuses_what_is_not_piecewise_linear_through_its_biases(images, model, targets, operation):
    with pytest.raises(ValueError, match=f"this one has ({operation}) of its activations"):
        full_grad(model, images, targets)


def test_full_grad_has_no_layer(images):
    with pytest.raises(ValueError, match="layer"):
        full_grad(ConvNet(), images, LABELS, layer="stem")


@pytest.mark.parametrize("method", [guided_backprop, full_grad])
def test_rematerialised_models_are_seen_through(images, method, assert_close):
    plain, remat = (
        jax.jit(method)(ConvNet(activation=f), images, LABELS) for f in (nnx.relu, jax.checkpoint(nnx.relu))
    )
    assert_close(remat, plain, 1e-6)


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, jax.nn.celu, jax.nn.hard_swish, jax.nn.relu6])
def test_only_relus_are_guided(images, activation, assert_close):
    class Normed(ConvNet):
        """With norms, which clamp their variance by max(0, var)."""

        def __init__(self):
            super().__init__(activation=activation)
            self.layer_norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
            self.group_norm = nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))

        def features(self, images):
            return self.activation(self.group_norm(self.conv1(self.layer_norm(images))))

    model = Normed()
    assert_close(jax.jit(guided_backprop)(model, images, LABELS), plain_gradient(model, images), 5e-5)

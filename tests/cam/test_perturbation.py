"""Identities, closed forms and published conventions of Score-CAM's family and Ablation-CAM."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam import resize
from dcls_jax.cam.maps import resize_corners
from dcls_jax.cam.masks import over_masks
from dcls_jax.cam.perturbation import ScoreConvention, ablation_cam, is_cam, score_cam, ss_cam
from tests.conftest import initialiser, normal
from tests.golden import PEERS, load, peer_maps

METHODS = {"score_cam": score_cam, "ss_cam": ss_cam, "is_cam": is_cam, "ablation_cam": ablation_cam}
FEW = {"ss_cam": {"samples": 2}, "is_cam": {"steps": 2}}
KEYS = {"ss_cam": {"key": jax.random.key(0)}}
LABELS = jnp.array([0, 4, 2])


class Small(nnx.Module):
    """Signed activations smaller than the image; a head that is not linear."""

    def __init__(self, channels=6, classes=5):
        options = {"kernel_init": initialiser(0), "rngs": nnx.Rngs(0)}
        self.conv = nnx.Conv(3, channels, (3, 3), strides=(3, 3), padding="VALID", **options)
        self.fc = nnx.Linear(channels, classes, **options)
        self.fc.kernel[...] *= 5

    def features(self, images):
        return self.conv(images)

    def head(self, activations):
        return self.fc(jax.nn.gelu(activations).mean((1, 2)))


class Rescaled(Small):
    """The same function of the image, with each channel of the activation scaled."""

    scale = jnp.array([0.2, 1, 3, 0.5, 7, 0.1])

    def features(self, images):
        return self.conv(images) * self.scale

    def head(self, activations):
        return super().head(activations / self.scale)


class Constant(Small):
    """A classifier that does not look."""

    def head(self, activations):
        return 0 * super().head(activations) + jnp.arange(5.0)


class Regression(Small):
    """One number per image."""

    def head(self, activations):
        return super().head(activations)[:, 1]


class Pooled(Small):
    """Global average pooling and a linear head."""

    def head(self, activations):
        return self.fc(activations.mean((1, 2)))


@pytest.fixture
def images():
    return normal(3, 12, 15, 3, seed=6)


@cache
def compiled(name, function, **options):
    """Compiled once per shape for all tests; targets that are a function are static."""
    return jax.jit(partial(METHODS[name], **options), static_argnames="targets" if function else ())


def run(name, model, images, targets, *, arrays=None, **options):
    """A method by name, with options that hold arrays apart; a key where one is needed."""
    arrays = KEYS.get(name, {}) | (arrays or {})
    options = FEW.get(name, {}) | options
    return compiled(name, callable(targets), **options)(model, images, targets=targets, **arrays)


def channel_weights(maps, activations):
    """The weights (B, C) of which maps are sums of activations; there are more cells than channels."""
    cells = activations.reshape(len(maps), -1, activations.shape[-1])
    pairs = zip(cells, maps.reshape(len(maps), -1), strict=True)
    return np.stack([np.linalg.lstsq(np.asarray(a), np.asarray(m))[0] for a, m in pairs])


@pytest.fixture(scope="module", params=PEERS)
def golden(request):
    """A model, its images and labels, and pytorch-grad-cam's raw maps at the third stage."""
    model, expected = load(request.param)
    return model, jnp.asarray(expected["image"]), expected["one_hot"], peer_maps(request.param)


def test_score_cam_of_pytorch_grad_cam(golden, assert_close):
    model, images, targets, peer = golden
    maps = run("score_cam", model, images, targets, layer="stages.2", convention="pytorch_grad_cam")
    assert_close(maps, peer["ScoreCAM.raw"])


def test_ablation_cam_of_pytorch_grad_cam(golden, assert_close):
    model, images, targets, peer = golden
    activations = jax.jit(partial(model.features, upto="stages.2"))(images)
    # Well defined after a ReLU. Elsewhere the peer sets a channel to the least value of its mini-batch of 32 copies
    # minus 1e7, ablated copies included, so that values fall by 1e7 from each channel to the next.
    baseline = np.zeros((len(images), activations.shape[-1]), np.float32)
    for image, least in enumerate(activations.min((1, 2, 3))):
        for channel in range(activations.shape[-1]) if least else ():
            previous = baseline[image, channel - 1] if channel % 32 else least
            baseline[image, channel] = previous - np.float32(1e7)
    options = {"layer": "stages.2", "division": "score", "arrays": {"baseline": baseline}}
    maps = run("ablation_cam", model, images, targets, **options)
    assert_close(maps, peer["AblationCAM.raw"])


def test_score_cam_is_the_sum_over_enlarged_channels_of_its_authors(images, assert_close):

    @jax.jit
    def authors(model):
        channels = jnp.moveaxis(model.features(images), 3, 0).reshape(18, 4, 5)
        enlarged = resize(channels, (12, 15)).reshape(6, 3, 12, 15)
        low, high = enlarged.min((2, 3), keepdims=True), enlarged.max((2, 3), keepdims=True)
        masked = images * ((enlarged - low) / (high - low))[..., None]
        probabilities = jax.nn.softmax(model.head(model.features(masked.reshape(18, 12, 15, 3)))).reshape(6, 3, 5)
        return (probabilities[:, jnp.arange(3), LABELS][..., None, None] * enlarged).sum(0)

    maps = run("score_cam", Small(), images, LABELS)
    assert_close(resize(maps, (12, 15)), authors(Small()), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["official", "torch_cam"])
def test_one_mask_per_channel_is_score_cam(images, convention, assert_close):
    model = Small()
    expected = run("score_cam", model, images, LABELS, convention=convention)
    assert_close(run("ss_cam", model, images, LABELS, convention=convention, samples=2, sigma=0.0), expected, 1e-5)
    assert_close(run("is_cam", model, images, LABELS, convention=convention, steps=1), expected, 1e-6)


def test_score_cam_weighs_by_probabilities_whatever_the_scale_of_a_channel(images, assert_close):
    model, scaled = Small(), Rescaled()
    maps = run("score_cam", model, images, LABELS)
    weights = channel_weights(maps, model.features(images))
    assert (weights > 0).all()
    assert (weights < 1).all()
    assert_close(channel_weights(run("score_cam", scaled, images, LABELS), scaled.features(images)), weights, 1e-4)
    assert_close(run("score_cam", model, images, jax.nn.one_hot(LABELS, 5)), maps, 1e-6)
    own_scale = run("score_cam", model, images, lambda logits: logits[2])
    logits = ScoreConvention(probabilities=False)
    assert_close(own_scale, run("score_cam", model, images, jnp.full(3, 2), convention=logits), 1e-5)


@pytest.mark.slow
def test_a_classifier_that_does_not_look_weighs_channels_alike(images, assert_close):
    model = Constant()
    activations = model.features(images)
    for convention in ("pytorch_grad_cam", "torch_cam"):
        assert_close(run("score_cam", model, images, LABELS, convention=convention), activations.mean(-1), 1e-5)
    probabilities = jax.nn.softmax(jnp.arange(5.0))[LABELS][:, None, None]
    assert_close(run("score_cam", model, images, LABELS), probabilities * activations.sum(-1), 1e-5)
    assert not run("ablation_cam", model, images, LABELS).any()


def test_constant_channels_have_no_weight(images):
    model = Small()
    model.conv.kernel[...] = model.conv.kernel[...].at[..., 2].set(0)
    model.conv.bias[...] = model.conv.bias[...].at[2].set(0.3)
    weights = channel_weights(run("score_cam", model, images, LABELS), model.features(images))
    assert (np.abs(weights[:, 2]) < 1e-5).all()
    assert (weights[:, [0, 1, 3, 4, 5]] > 1e-4).all()
    assert jnp.isfinite(run("score_cam", model, images, LABELS, convention="pytorch_grad_cam")).all()


def test_noise_is_what_the_key_says(images):
    keys = jax.random.split(jax.random.key(1), 3)
    maps = [run("ss_cam", Small(), images, LABELS, arrays={"key": key}) for key in (keys, keys, keys[2])]
    assert (maps[0] == maps[1]).all()
    np.testing.assert_allclose(maps[0][2], maps[2][2], rtol=1e-5)
    assert jnp.abs(maps[0][1] - maps[2][1]).max() > 1e-3 * jnp.abs(maps[0][1]).max()


@pytest.mark.parametrize("division", ["magnitude", "score", "none"])
def test_ablation_of_a_pooled_linear_head_is_the_closed_form(images, division, assert_close):
    model = Pooled()
    model.fc.bias[...] -= 1
    activations = model.features(images)
    means = activations.mean((1, 2))
    score = jnp.take_along_axis(model.head(activations), LABELS[:, None], 1)
    assert (score.min() < 0) & (score.max() > 0)
    divisor = {"magnitude": jnp.abs(score), "score": score, "none": 1}[division]
    expected = jnp.einsum("bhwc,bc->bhw", activations, model.fc.kernel[...].T[LABELS] * means / divisor)
    method = partial(run, "ablation_cam", division=division)
    assert_close(method(model, images, LABELS), expected, 1e-4)
    # A channel that becomes its own mean is not missed by a pooled head; one that doubles adds what it lost.
    assert jnp.abs(method(model, images, LABELS, arrays={"baseline": means})).max() < 1e-4 * jnp.abs(expected).max()
    assert_close(method(model, images, LABELS, arrays={"baseline": 2 * means}), -expected, 1e-4)


def test_ablation_of_a_score_of_zero_is_finite(images):
    assert not run("ablation_cam", Small(), images, lambda logits: 0 * logits[0]).any()


def test_corners_stay_on_corners(assert_close):
    ramp = jnp.arange(4.0)[:, None] + 10 * jnp.arange(3.0)
    enlarged = resize_corners(ramp[None], (7, 9))[0]
    assert_close(enlarged, jnp.linspace(0, 3, 7)[:, None] + 10 * jnp.linspace(0, 2, 9), 1e-6)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (score_cam, {"convention": "captum"}, "convention .='captum'. must be one of official, pytorch_grad_cam, t"),
        (score_cam, {"masks_at_a_time": 0}, "masks_at_a_time .=0. must be at least 1"),
        (ss_cam, {"samples": 0, "key": jax.random.key(0)}, "masks per channel .=0. must be at least 1"),
        (ablation_cam, {"division": "softmax"}, "division .='softmax'. must be"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(images, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(**({"model": Small(), "images": images, "targets": LABELS} | options))


def test_regressions_read_the_output_itself(images, assert_close):
    rule = ScoreConvention(probabilities=False)
    logits = run("score_cam", Small(), images, lambda logits: logits[1], convention=rule)
    assert_close(run("score_cam", Regression(), images, lambda output: output, convention=rule), logits, 1e-5)


@pytest.mark.parametrize(("masks", "at_a_time", "lengths"), [(49, 32, 25), (29, 32, 29), (64, 32, 32), (65, 32, 22)])
def test_masks_come_in_as_few_chunks_of_nearly_one_length(masks, at_a_time, lengths):
    seen = []

    def function(indices):
        seen.append(indices.shape)
        return 2 * indices

    np.testing.assert_array_equal(over_masks(function, masks, 1, at_a_time), 2 * np.arange(masks))
    assert set(seen) == {(lengths,)}

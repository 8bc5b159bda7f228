"""What must not make a difference, and what must be said, for every method through `explain`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam import (
    DeadMapWarning,
    LogProbability,
    Probability,
    Region,
    Sigmoid,
    explain,
    explain_all,
    grad_cam,
    grad_cam_pp,
    guided_grad_cam,
    integrated_grad_cam,
    smooth_grad_cam_pp,
)
from tests.conftest import initialiser, normal, random_model, slow
from tests.models.small import small

LABELS = np.array([0, 2, 1, 2])


class Moody(nnx.Module):
    """Batch normalisation and dropout, in training mode."""

    def __init__(self):
        draw = initialiser(3)
        self.conv = nnx.Conv(3, 6, (3, 3), kernel_init=draw, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(6, 3, kernel_init=draw, rngs=nnx.Rngs(0))

    def features(self, images):
        return nnx.relu(self.norm(self.conv(images)))

    def head(self, activations):
        return self.fc(self.dropout(activations).mean((1, 2)))


@pytest.fixture
def images():
    return normal(4, 6, 8, 3)


@pytest.mark.parametrize("way", ["explain", slow("eager")])
def test_models_are_explained_in_evaluation_mode_and_left_in_their_own(images, way, assert_close):
    training, evaluated = Moody(), Moody()
    evaluated.eval()
    moves = nnx.Any(nnx.BatchStat, nnx.RngCount)
    before = jax.tree.map(jnp.copy, nnx.state(training, moves))
    explained = explain if way == "explain" else grad_cam
    assert_close(explained(training, images, LABELS), grad_cam(evaluated, images, LABELS), 1e-6)
    assert not training.norm.use_running_average
    assert not training.dropout.deterministic
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.state(training, moves)))


def test_rounding_errors_are_no_map():
    """HiResCAM before a normalisation of channels: sum_k g_k A_k cancels in every cell."""
    model = random_model(lambda: small("convnext_tiny"))
    pictures = normal(3, 32, 32, 3)
    with pytest.warns(
        DeadMapWarning, match="images 0, 1, 2 by hires_cam at layer 'stages.0' are constant but for round"
    ):
        maps = explain(model, pictures, [0, 1, 2], method="hires_cam", layer="stages.0")
    assert not maps.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explain(model, pictures, [0, 1, 2], method="elementwise", layer="stages.0").any()


@pytest.mark.filterwarnings("ignore::dcls_jax.cam.DeadMapWarning")
@pytest.mark.parametrize("method", ["random_cam", "shapley_cam", "integrated_grad_cam", "finer_cam", "group_cam"])
def test_a_map_says_what_magnitudes_it_adds_up(method):
    options = {"random_cam": {"key": jax.random.key(0)}, "finer_cam": {"count": 1}}.get(method, {})
    assert explain(Moody(), normal(2, 6, 8, 3), [0, 1], method=method, **options).any()
    assert not explain(Moody(), normal(2, 6, 8, 3), [0, 1], method=method, reduce=cancelling, **options).any()


@pytest.mark.filterwarnings("ignore::dcls_jax.cam.DeadMapWarning")
@pytest.mark.parametrize("method", ["ablation_cam", "group_cam", "occlusion"])
def test_changes_of_the_score_by_rounding_alone_are_no_map(images, method):
    class Deaf(Moody):
        """Its score moves by less than the rounding errors of a score of 1000."""

        def head(self, activations):
            return 1000 + 1e-3 * Moody.head(self, activations)

    assert not explain(Deaf(), images, lambda logits: logits[0], method=method).any()


def cancelling(terms):
    """Nothing but rounding of what there is to sum."""
    return 1e-7 * terms.sum(-1)


def test_a_lambda_is_known_by_its_program(images):
    model, traces = Moody(), []

    def counted(model, images, targets, *, layer=None):
        traces.append(1)
        return grad_cam(model, images, targets, layer=layer)

    weights = jnp.array([1.0, -1.0, 0.5])
    made = {}
    for a in (0, 0, 1):
        for scale in (1, 1, 2):

            def target(logits):
                return logits[a] - (logits * weights * scale).sum()  # noqa: B023

            made[a, scale] = explain(model, images, target, method=counted)
    assert len(traces) == 4  # one for each of two classes and two scales
    assert not np.allclose(made[0, 1], made[1, 1])
    assert not np.allclose(made[0, 1], made[0, 2])
    explain(model, images, lambda logits: (logits * (weights + 1)).sum(), method=counted)
    explain(model, images, lambda logits: (logits * (weights + 2)).sum(), method=counted)
    assert len(traces) == 6


def test_custom_derivatives_tell_functions_apart(images):
    def clipped(derivative):
        @jax.custom_jvp
        def f(x):
            return x * 1.0

        f.defjvp(lambda primals, tangents: (f(*primals), derivative * tangents[0]))
        return lambda logits: f(logits[0])

    model = Moody()
    once, twice = (explain(model, images, clipped(d)) for d in (1.0, 2.0))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_mirrored_views_keep_regions_where_they_are(images, assert_close):
    class Dense(nnx.Module):
        def features(self, images):
            return images

        def head(self, activations):
            return activations**2

    masks = jnp.zeros((4, 6, 8)).at[:, 2:4, :3].set(1)
    maps = explain(Dense(), images, Region(LABELS, masks), augment=True)
    mirrored = explain(Dense(), images[:, :, ::-1], Region(LABELS, masks[:, :, ::-1]), augment=True)
    assert_close(mirrored[:, :, ::-1], maps, 1e-6)
    # the gradient is in the region alone, upright and mirrored
    expected = sum(grad_cam(Dense(), s * images, Region(LABELS, masks)) for s in (0.9, 1, 1.1)) / 3
    assert_close(maps, expected, 1e-6)


def test_grad_cam_pp_has_room_in_float16(images, assert_close):
    model = Moody()
    scaled = lambda logits: 1e-3 * logits[1]  # noqa: E731
    run = jax.jit(lambda model, images: grad_cam_pp(model, images, scaled))
    expected = run(model, images)
    half = jax.tree.map(lambda x: x.astype(jnp.float16) if jnp.issubdtype(x.dtype, jnp.floating) else x, model)
    assert_close(run(half, images.astype(jnp.float16)), expected, 2e-2)


def test_certain_models_keep_their_grad_cam_pp(images):
    maps = grad_cam_pp(Moody(), images, lambda logits: 1e-25 * logits[1])
    assert (maps != 0).any()


@pytest.mark.filterwarnings("ignore::dcls_jax.cam.DeadMapWarning")
@pytest.mark.parametrize("method", ["score_cam", slow("is_cam"), slow("group_cam")])
def test_masked_images_are_scored_on_the_targets_own_scale(images, method):
    model = Moody()
    probability = explain(model, images, Probability(LABELS), method=method)
    label = explain(model, images, LABELS, method=method)
    logarithm = explain(model, images, LogProbability(LABELS), method=method)
    if method != "group_cam":  # whose groups are weighed by the gradient
        np.testing.assert_allclose(probability, label, rtol=2e-4, atol=1e-6)  # the softmax is taken once
        assert (logarithm.sum(-1) <= 1e-6).all()  # log-probabilities are negative
    several = explain(model, images, Sigmoid(LABELS), method=method)
    assert not np.allclose(several, label, rtol=1e-2)


def test_several_heads_are_explained_by_the_one_that_the_target_reads(images, assert_close):
    class Heads(Moody):
        def head(self, activations):
            logits = Moody.head(self, activations)
            return {"class": logits, "depth": (activations**2).mean(-1), "pair": (logits, -logits)}

    model = Heads()
    expected = explain(Moody(), images, LABELS[:1].repeat(4))
    assert_close(explain(model, images, lambda output: output["class"][0]), expected, 1e-6)
    assert_close(explain(model, images, lambda output: -output["pair"][1][0], method="grad_cam"), expected, 1e-6)
    assert explain(model, images, lambda output: output["depth"].mean(), method="ablation_cam").shape == (4, 6, 8)
    with pytest.raises(ValueError, match=r"the model's output is .*class.*: give targets that are a function"):
        explain(model, images, LABELS)
    with pytest.raises(ValueError, match="targets are needed"):
        explain(model, images)


@pytest.mark.slow
def test_keys_of_the_old_kind_are_keys(images, assert_close):
    model = Moody()
    for key in (jax.random.PRNGKey(3), jax.random.split(jax.random.PRNGKey(3), 4)):
        new = jax.random.wrap_key_data(key)
        maps = [explain(model, images, LABELS, method="random_cam", key=k, chunk=3) for k in (key, new)]
        assert_close(*maps, 1e-6)
    assert_close(
        smooth_grad_cam_pp(model, images, LABELS, key=jax.random.PRNGKey(3), samples=2),
        explain(model, images, LABELS, method="smooth_grad_cam_pp", key=jax.random.key(3), samples=2),
        1e-5,
    )


@pytest.mark.slow
def test_baselines_of_each_image_are_cut_with_it(images, assert_close):
    model = Moody()
    for baseline in (normal(4, 6, 8, 3, seed=4), normal(4, 3, seed=4), normal(6, 8, 3, seed=4)):
        options = {"method": integrated_grad_cam, "steps": 3, "baseline": baseline}
        assert_close(
            explain(model, images, LABELS, chunk=3, **options), explain(model, images, LABELS, **options), 1e-5
        )
    options = {"method": "ablation_cam", "baseline": normal(4, 6)}
    assert_close(explain(model, images, LABELS, chunk=3, **options), explain(model, images, LABELS, **options), 1e-4)


@pytest.mark.slow
def test_guided_grad_cam_is_a_map_too(images, assert_close):
    model = Moody()
    terms = guided_grad_cam(model, images, LABELS)
    assert terms.shape == images.shape
    assert_close(explain(model, images, LABELS, method=guided_grad_cam), terms.sum(-1), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": normal(4, 6, 8, 1)}, r"images have shape \(4, 6, 8, 1\), expected \(B, \*size, C\), channels last"),
        ({"images": normal(4, 3, 6, 8)}, r"images have shape \(4, 3, 6, 8\), expected"),
        ({"images": (normal(4, 6, 8, 3), normal(3, 2))}, r"an input of shape \(3, 2\), expected a leading axis of 4"),
        ({"images": normal(6, 8)}, r"images have shape \(6, 8\), expected \(B, \*size, C\)"),
        ({"layer": Moody()}, "layer .* must be the name of a layer"),
        ({"augment": True, "images": normal(4, 8, 3)}, "augment .=True. mirrors pictures"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(images, change, message):
    with pytest.raises(ValueError, match=message):
        explain(**({"model": Moody(), "images": images, "targets": LABELS} | change))


def test_activations_with_channels_first_are_refused(images):
    class First(Moody):
        def features(self, images):
            return jnp.moveaxis(Moody.features(self, images), -1, 1)

        def head(self, activations):
            return Moody.head(self, jnp.moveaxis(activations, 1, -1))

    with pytest.raises(
        ValueError, match=r"the features of the model have shape \(4, 6, 8, 8\), which looks like channels"
    ):
        explain(First(), normal(4, 8, 8, 3), LABELS)
    with pytest.raises(ValueError, match=r"which looks like channels first; expected \(4, h, w, channels\)"):
        explain(First(), normal(4, 16, 12, 3), LABELS)


def test_sizes_of_any_kind_of_whole_number(images, assert_close):
    model = Moody()
    expected = explain(model, images, LABELS, size=(12, 12))
    for size in (12, np.int64(12), [12, 12], (np.int32(12), 12)):
        assert_close(explain(model, images, LABELS, size=size), expected, 1e-6)


@pytest.mark.slow
def test_several_methods_run_the_model_once(images):
    model, pictures = random_model(lambda: small("resnet50")), normal(4, 32, 32, 3)
    methods = ("grad_cam", "hires_cam", "layer_cam", "xgrad_cam", "threshold_grad_cam")

    def cost(names):
        def run(model, images):
            return explain_all(model, images, LABELS, {name: {"method": name} for name in names})

        return jax.jit(run).lower(model, pictures).compile().cost_analysis()["flops"]

    assert cost(methods) < 1.1 * cost(methods[:1])
    made = explain_all(model, pictures, LABELS, {name: {"method": name} for name in methods})
    for name in methods[1::2]:
        alone = explain(model, pictures, LABELS, method=name)
        np.testing.assert_allclose(made[name], alone, rtol=1e-4, atol=1e-5)


def test_noise_is_averaged_without_being_kept(images):
    def memory(samples):
        def run(model, images):
            return smooth_grad_cam_pp(model, images, LABELS, key=jax.random.key(0), samples=samples)

        analysis = jax.jit(run).lower(Moody(), normal(4, 32, 32, 3)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert memory(32) < 1.2 * memory(4)

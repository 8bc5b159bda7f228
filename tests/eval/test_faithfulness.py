"""Deletion, insertion, changes of confidence and ADCC against loops over one image, closed forms and peers' values."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from scipy import ndimage

from dcls_jax.cam import from_functions, layer_cam, postprocess, resize
from dcls_jax.eval import faithfulness
from dcls_jax.eval.faithfulness import FLIPPING_PRESETS, SUBSTRATES, Status
from dcls_jax.eval.program import Program, Row, Task
from dcls_jax.eval.runner import run_together
from dcls_jax.eval.status import Scores
from tests.cam.toys import ConvNet
from tests.conftest import normal, slow

PRESETS = list(FLIPPING_PRESETS)
SIDE, KEY = 12, jax.random.key(0)


def _sum(images):
    total = images.sum((1, 2, 3))
    return jnp.stack([total, 1 - total], 1)


def _itself(_, x):
    return x


def _sums(_, x):
    return _sum(x)


SUMS = from_functions(_itself, _sums, ())  # torch-cam's model of its tests


def first(logits):
    """The first class's score, on its own scale."""
    return logits[0]


def by_hand(model, image, importance, rule, kind, label=None):
    """A curve of one image (H, W, C) and its map, of the same size, as the originals make it: pixel by pixel."""

    def confidence(x):
        logits = np.asarray(model.head(model.features(jnp.asarray(x)[None])), np.float64)[0]
        shares = np.exp(logits - logits.max())
        return shares / shares.sum()

    label = confidence(image).argmax() if label is None else label
    flat = importance.ravel()
    order = np.argsort(flat, kind="stable")[::-1] if rule.ties == "later" else np.argsort(-flat, kind="stable")
    order = order[::-1] if kind == "least first" else order
    name = rule.inserts_into if kind == "insertion" else rule.deletes_to
    substrate = np.asarray(SUBSTRATES[name](jnp.asarray(image)[None]))[0]
    start, finish = (substrate, image) if kind == "insertion" else (image, substrate)
    scores, shown = [], start.reshape(-1, image.shape[-1]).copy()
    previous = 0
    for count in rule.counts(flat.size):
        pixels = order[previous:count]
        shown[pixels] = finish.reshape(-1, image.shape[-1])[pixels]
        previous = count
        scores.append(confidence(shown.reshape(image.shape))[label])
    return np.array(scores)


@pytest.fixture(scope="module")
def pictures():
    """Two pictures for `tiny.Tiny`, and maps of the same size that tie: floored, and of few values."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((2, 7, 7)).astype(np.float32)
    maps = np.array(postprocess(coarse, floor=0.3, size=224))
    maps[1] = rng.integers(0, 5, (224, 224))
    return np.asarray(normal(2, 224, 224, 3, seed=1)), maps


@pytest.mark.parametrize(
    "preset", [name if name in ("rise", "torch_cam", "xplique") else slow(name) for name in PRESETS]
)
@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_curves_are_those_of_a_loop_over_pixels(preset, kind, pictures):
    model, (images, maps) = tiny.Tiny(), pictures
    curves = getattr(faithfulness, kind)(model, images, maps, preset=preset)
    rule = FLIPPING_PRESETS[preset]
    assert curves.shape == (2, len(rule.counts(224 * 224)))
    points = slice(None, None, 7 if curves.shape[1] > 50 else 1)
    for image, importance, curve in zip(images, maps, curves, strict=True):
        expected = by_hand(model, image, importance, rule, kind)
        np.testing.assert_allclose(curve[points], expected[points], atol=2e-6)


def test_steps_are_the_originals():
    pixels = 224 * 224
    steps = {name: FLIPPING_PRESETS[name].counts(pixels) for name in PRESETS}
    assert {name: len(counts) - 1 for name, counts in steps.items()} == {
        "rise": 28,
        "rise_single": 224,
        "group_cam": 112,
        "group_cam_2021": 28,
        "torch_cam": 20,
        "xplique": 10,
    }
    assert list(steps["rise"][:3]) == [0, 1792, 3584]
    assert list(steps["torch_cam"][-3:]) == [18 * 2509, 19 * 2509, pixels]
    np.testing.assert_array_equal(steps["xplique"], np.linspace(0, pixels, 11, dtype=np.int32))
    assert list(FLIPPING_PRESETS["rise"].counts(4000)) == [0, 1792, 3584, 4000]


def test_torch_cams_published_curves():
    images = jnp.asarray([[0.4, 0.3], [0.2, 0.1]]).reshape(1, 2, 2, 1)
    two = replace(FLIPPING_PRESETS["torch_cam"], steps=2)
    deletion = faithfulness.deletion(SUMS, images, images[..., 0], first, preset=two)
    insertion = faithfulness.insertion(SUMS, images, images[..., 0], first, preset=two)
    np.testing.assert_allclose(deletion, [[1, 0.3, 0]], atol=1e-6)
    np.testing.assert_allclose(insertion, [[0, 0.7, 1]], atol=1e-6)
    np.testing.assert_allclose(faithfulness.auc(deletion), [0.4], atol=1e-6)
    np.testing.assert_allclose(faithfulness.auc(insertion), [0.6], atol=1e-6)


@pytest.mark.slow
def test_torch_cams_published_curves_of_five_pixels():
    images = jnp.asarray([0.3, 0.25, 0.2, 0.15, 0.1]).reshape(1, 1, 5, 1)
    three = replace(FLIPPING_PRESETS["torch_cam"], steps=3)
    along = faithfulness.fractions((1, 5), preset=three)
    np.testing.assert_allclose(along, [0, 0.4, 0.8, 1], atol=1e-7)
    deletion = faithfulness.deletion(SUMS, images, images[..., 0], first, preset=three)
    insertion = faithfulness.insertion(SUMS, images, images[..., 0], first, preset=three)
    np.testing.assert_allclose(deletion, [[1, 0.45, 0.1, 0]], atol=1e-6)
    np.testing.assert_allclose(insertion, [[0, 0.55, 0.9, 1]], atol=1e-6)
    np.testing.assert_allclose(faithfulness.auc(deletion, fractions=along), [0.41], atol=1e-6)
    np.testing.assert_allclose(faithfulness.auc(insertion, fractions=along), [0.59], atol=1e-6)


def _where_it_matters(_, x):
    """One class where all of the first column is there, the other elsewhere."""
    return 50 * jnp.stack([(x[:, :, 0] > 0.5).all((1, 2)), (x[:, :, 0] < 0.5).any((1, 2))], 1)


@pytest.mark.slow
def test_a_perfect_map_deletes_at_once_and_inserts_at_once():
    model = from_functions(_itself, _where_it_matters, ())
    images = jnp.ones((1, 10, 10, 1))
    maps = jnp.zeros((1, 10, 10)).at[:, :, 0].set(1.0)
    ten = replace(FLIPPING_PRESETS["rise"], step=10, inserts_into="zeros")
    deletion = faithfulness.deletion(model, images, maps, preset=ten)
    insertion = faithfulness.insertion(model, images, maps, preset=ten)
    np.testing.assert_allclose(deletion, [[1.0] + 10 * [0.0]], atol=1e-6)
    np.testing.assert_allclose(insertion, [[0.0] + 10 * [1.0]], atol=1e-6)
    np.testing.assert_allclose(faithfulness.relevance_gain(model, images, maps, preset=ten), [0.9], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rise", "torch_cam", "xplique"])
def test_relevance_gain_is_the_difference_of_two_orders(preset):
    model, images = ConvNet(), normal(2, SIDE, SIDE, 3)
    maps = np.random.default_rng(3).integers(0, 9, (2, SIDE, SIDE)).astype(np.float32)
    rule = FLIPPING_PRESETS[preset]
    rule = rule if rule.step is None else replace(rule, step=20)
    along = faithfulness.fractions((SIDE, SIDE), preset=rule) if rule.by_fraction else None
    expected = [
        np.trapezoid(
            by_hand(model, image, each, rule, "least first") - by_hand(model, image, each, rule, "deletion"),
            np.linspace(0, 1, len(rule.counts(SIDE**2))) if along is None else along,
        )
        for image, each in zip(np.asarray(images), maps, strict=True)
    ]
    gain = faithfulness.relevance_gain(model, images, maps, preset=rule)
    np.testing.assert_allclose(gain, expected, atol=2e-6)


def test_of_equal_pixels_the_preset_says_which_goes_first():
    images = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    flat = jnp.ones((1, 2, 2))
    later, earlier = (replace(FLIPPING_PRESETS["rise"], step=1, ties=ties) for ties in ("later", "earlier"))
    np.testing.assert_allclose(
        faithfulness.deletion(SUMS, images, flat, first, preset=later), [[10, 6, 3, 1, 0]], atol=1e-5
    )
    np.testing.assert_allclose(
        faithfulness.deletion(SUMS, images, flat, first, preset=earlier), [[10, 9, 7, 4, 0]], atol=1e-5
    )


def test_the_blur_of_rise():
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = ndimage.gaussian_filter(impulse, 5)
    image = np.asarray(normal(1, 20, 23, 3))
    expected = np.stack([ndimage.convolve(image[0, ..., c], kernel, mode="constant") for c in range(3)], -1)
    np.testing.assert_allclose(SUBSTRATES["blur_11"](jnp.asarray(image))[0], expected, atol=1e-6)
    np.testing.assert_allclose(kernel.sum(), 1, atol=1e-12)
    assert kernel[0, 0] / kernel[5, 5] > 0.85  # nearly flat


def test_the_blur_of_group_cam():
    taps = np.exp(-0.5 * (np.arange(-25, 26) / 50) ** 2)
    image = np.asarray(normal(1, 40, 33, 3))
    expected = image.astype(np.float64)
    for axis in (1, 2):
        expected = ndimage.convolve1d(expected, taps / taps.sum(), axis, mode="mirror")
    np.testing.assert_allclose(SUBSTRATES["blur_51"](jnp.asarray(image)), expected, atol=1e-6)


def test_areas_are_trapezoids():
    curves = np.asarray(normal(3, 6))
    along = np.sort(np.random.default_rng(0).random(6)).astype(np.float32)
    np.testing.assert_allclose(faithfulness.auc(curves), np.trapezoid(curves, dx=1 / 5, axis=-1), atol=1e-6)
    np.testing.assert_allclose(
        faithfulness.auc(curves, fractions=along), np.trapezoid(curves, along, axis=-1), atol=1e-6
    )
    assert faithfulness.auc([1.0, 0.0]) == 0.5


@pytest.mark.slow
def test_small_maps_are_resized_and_large_ones_without_antialiasing():
    model, images = ConvNet(), normal(2, SIDE, SIDE, 3)
    rule = replace(FLIPPING_PRESETS["rise"], step=20)
    small, large = normal(2, 3, 4, seed=2), normal(2, 20, 30, seed=3)
    rows, columns = ((np.arange(SIDE) + 0.5) * n / SIDE - 0.5 for n in (20, 30))
    grid = np.meshgrid(rows, columns, indexing="ij")
    sampled = np.stack([ndimage.map_coordinates(m, grid, order=1) for m in np.asarray(large)])
    for maps, seen in ((small, resize(small, SIDE)), (large, sampled)):
        np.testing.assert_allclose(
            faithfulness.deletion(model, images, maps, preset=rule),
            faithfulness.deletion(model, images, seen, preset=rule),
            atol=1e-6,
        )


@pytest.mark.slow
def test_the_class_is_the_predicted_one_unless_given():
    model, images, maps = ConvNet(), normal(3, SIDE, SIDE, 3), normal(3, 3, 3)
    logits = model.head(model.features(images))
    predicted, other = logits.argmax(1), logits.argmin(1)
    default = faithfulness.insertion(model, images, maps)
    np.testing.assert_array_equal(default, faithfulness.insertion(model, images, maps, predicted))
    worst = faithfulness.insertion(model, images, maps, np.asarray(other))
    np.testing.assert_allclose(worst[:, -1], jax.nn.softmax(logits).min(1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_do_not_change_curves(chunk):
    model, images, maps = ConvNet(), normal(3, SIDE, SIDE, 3), normal(3, 3, 3)
    rule = replace(FLIPPING_PRESETS["rise"], step=20)
    whole = faithfulness.deletion(model, images, maps, preset=rule)
    np.testing.assert_allclose(faithfulness.deletion(model, images, maps, preset=rule, chunk=chunk), whole, atol=1e-6)


def test_another_model_of_the_same_structure_is_not_compiled_anew():
    traces = []

    class Counting(ConvNet):
        def features(self, images):
            traces.append(images.shape)
            return super().features(images)

    images, maps = normal(1, SIDE, SIDE, 3), normal(1, 3, 3)
    curves = [faithfulness.deletion(Counting(), images, maps)]
    count = len(traces)
    other = Counting()
    other.fc.kernel[...] = 2 * other.fc.kernel[...]
    curves.append(faithfulness.deletion(other, images, maps))
    assert len(traces) == count
    assert np.abs(curves[0] - curves[1]).max() > 1e-3


MASKS = {
    "torch_cam": lambda m: resize(postprocess(m), SIDE),
    "xplique": lambda m: postprocess(jnp.abs(resize(m, SIDE))),
}


@pytest.mark.parametrize("preset", MASKS)
def test_confidence_changes_as_its_formulas_say(preset):
    model, images, maps = ConvNet(), normal(6, SIDE, SIDE, 3), normal(6, 3, 3, seed=5)
    masks = MASKS[preset](maps)

    def confidence(x):
        return jax.nn.softmax(model.head(model.features(x)))

    label = confidence(images).argmax(1)
    y, after = (np.asarray(confidence(x)[np.arange(6), label]) for x in (images, images * masks[..., None]))
    change = faithfulness.confidence_change(model, images, maps, preset=preset)
    assert {name: value.shape for name, value in change.items()} == dict.fromkeys(("drop", "increase", "gain"), (6,))
    np.testing.assert_allclose(change["drop"], np.maximum(y - after, 0) / y, atol=2e-6)
    np.testing.assert_array_equal(change["increase"], after > y)
    np.testing.assert_allclose(change["gain"], np.maximum(after - y, 0) / (1 - y), atol=2e-6)
    assert 0 < change["increase"].sum() < 6


def test_torch_cams_published_drop():
    images = jnp.asarray([[0.4, 0.3], [0.2, 0.1]]).reshape(1, 2, 2, 1)
    maps = jnp.asarray([[[1.0, 0], [0, 0]]])
    change = faithfulness.confidence_change(SUMS, images, maps, first)
    np.testing.assert_allclose(change["drop"], [0.6 / (1 + 1e-7)], atol=1e-6)
    assert change["increase"] == change["gain"] == 0


def test_negative_values_mask_nothing_in_and_magnitudes_do():
    images, maps = jnp.ones((1, 2, 2, 1)), jnp.asarray([[[-4.0, 0], [0, 2]]])
    positive = faithfulness.confidence_change(SUMS, images, maps, first)
    magnitude = faithfulness.confidence_change(SUMS, images, maps, first, preset="xplique")
    np.testing.assert_allclose([positive["drop"][0], magnitude["drop"][0]], [3 / 4, 2.5 / 4], atol=1e-6)


@pytest.mark.slow
def test_adcc_is_the_harmonic_mean_of_its_parts():
    model, images = ConvNet(), normal(4, SIDE, SIDE, 3)
    result = faithfulness.adcc(model, images, method="layer_cam")
    logits = model.head(model.features(images))
    labels = logits.argmax(1)
    y = jax.nn.softmax(logits).max(1)

    def masks(x):
        return postprocess(layer_cam(model, x, labels), size=SIDE)

    shown = masks(images)
    masked = images * shown[..., None]
    after = jax.nn.softmax(model.head(model.features(masked)))[jnp.arange(4), labels]
    again = masks(masked)
    for i in range(4):
        r = np.corrcoef(shown[i].ravel(), again[i].ravel())[0, 1]
        coherency, complexity, drop = (r + 1) / 2, shown[i].mean(), max(0, y[i] - after[i]) / y[i]
        np.testing.assert_allclose(result["coherency"][i], coherency, atol=1e-5)
        np.testing.assert_allclose(result["complexity"][i], complexity, atol=1e-6)
        np.testing.assert_allclose(result["drop"][i], drop, atol=1e-5)
        np.testing.assert_allclose(
            result["adcc"][i], 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)), atol=1e-5
        )


@pytest.mark.slow
def test_adcc_of_a_map_that_shows_nothing_is_zero():
    model, images = ConvNet(), jnp.ones((1, SIDE, SIDE, 3)) * normal(1, 1, 1, 3)
    result = faithfulness.adcc(from_functions(_itself, _sums, ()), images[..., :1], [0])
    assert result["coherency"] == result["adcc"] == result["complexity"] == 0
    again = faithfulness.adcc(model, images, method="rise", key=jax.random.key(0), masks=8, cells=3)
    assert 0 <= again["adcc"] <= 1


@pytest.mark.slow
def test_status_and_ties_are_told_before_any_score():
    maps = np.asarray(normal(4, 4, 5)).copy()
    maps[1], maps[2, 0, 0], maps[3, 0, :3] = 0.3, np.nan, 7
    expected = [status.code for status in (Status.COUNTED, Status.CONSTANT, Status.NOT_FINITE, Status.COUNTED)]
    np.testing.assert_array_equal(faithfulness.map_status(maps), expected)
    np.testing.assert_array_equal(jax.jit(faithfulness.map_status)(maps), expected)
    np.testing.assert_allclose(faithfulness.tied(maps)[jnp.array([0, 1, 3])], [0, 1, 3 / 20])
    floored = jnp.zeros((1, 2, 4)).at[0, :, 3].set(jnp.array([1.0, 2]))
    large = np.asarray(resize(floored, (4, 8)))[0].ravel()
    share = np.mean([np.sum(large == value) > 1 for value in large])
    np.testing.assert_allclose(faithfulness.tied(floored, size=(4, 8)), [share])


def test_inside_a_program_maps_that_are_not_finite_score_nan():
    model, images = ConvNet(), normal(2, SIDE, SIDE, 3)
    maps = normal(2, 3, 3).at[1, 0, 0].set(jnp.nan)
    rule = replace(FLIPPING_PRESETS["rise"], step=50)

    @jax.jit
    def all_of(maps):
        change = faithfulness.confidence_change(model, images, maps)
        return faithfulness.insertion(model, images, maps, preset=rule), change["drop"][:, None]

    for scores in all_of(maps):
        assert np.isfinite(scores[0]).all()
        assert np.isnan(scores[1]).all()
    np.testing.assert_allclose(
        all_of(maps)[0][0], faithfulness.insertion(model, images[:1], maps[:1], preset=rule)[0], atol=1e-6
    )


NAN = np.full((2, 3, 3), np.nan, np.float32)
WRONG = [
    ({"preset": "rice"}, r"preset \(='rice'\) must be one of rise, rise_single"),
    ({"maps": np.zeros((3, 3, 3))}, r"maps have shape \(3, 3, 3\), expected \(2, h, w\)"),
    ({"maps": np.zeros((2, 3, 3, 1))}, r"maps have shape \(2, 3, 3, 1\), expected \(2, h, w\)"),
    ({"maps": NAN}, r"maps of images 0, 1 are not finite"),
    ({"maps": np.where(np.arange(2)[:, None, None] == 1, NAN, 0)}, r"maps of image 1 are not finite"),
    ({"images": np.full((2, 8, 8, 3), np.inf, np.float32)}, r"^images 0, 1 are not finite"),
    ({"images": np.zeros((2, 3))}, r"images have shape \(2, 3\), expected \(B, H, W, C\)"),
    ({"targets": [0, 5]}, r"targets hold label 5, but the model has classes 0 to 4"),
    ({"targets": [0]}, r"targets have shape \(1,\)"),
    ({"chunk": 0}, r"chunk \(=0\) must be at least 1"),
    ({"model": object()}, r"model \(a object\) has no `features` and `head`"),
]


@pytest.mark.parametrize("metric", ["deletion", "insertion", "relevance_gain", "confidence_change"])
@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_does_not_fit_is_refused_by_name(metric, wrong, message):
    given = {"model": ConvNet(), "images": np.zeros((2, 8, 8, 3), np.float32), "maps": np.zeros((2, 3, 3)), **wrong}
    model, images, maps = (given.pop(name) for name in ("model", "images", "maps"))
    if metric == "confidence_change":
        message = message.replace("rise, rise_single", "torch_cam, xplique")
    with pytest.raises(ValueError, match=message):
        getattr(faithfulness, metric)(model, images, maps, given.pop("targets", None), **given)


def test_wrong_curves_are_refused():
    with pytest.raises(ValueError, match=r"curves have shape \(3, 1\), expected"):
        faithfulness.auc(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"fractions have shape \(3,\), expected \(2,\)"):
        faithfulness.auc(np.zeros((3, 2)), fractions=np.zeros(3))
    with pytest.raises(ValueError, match=r"method \(='grad'\) must be one of cam, grad_cam"):
        faithfulness.adcc(ConvNet(), np.zeros((1, 8, 8, 3), np.float32), method="grad")


def test_every_preset_says_where_it_comes_from():
    tables = (faithfulness.FLIPPING_PRESETS, faithfulness.MASKING_PRESETS, faithfulness.ROAD_PRESETS)
    for table in tables:
        for name, preset in table.items():
            assert preset.name == name
            assert "github.com/" in preset.source
            assert hash(preset) == hash(replace(preset))


@pytest.mark.slow
def test_the_runner_gives_each_image_what_it_gets_alone():
    model, count = ConvNet(), 10
    images, maps = np.asarray(normal(count, SIDE, SIDE, 3)), np.asarray(normal(count, 4, 4, seed=1))
    rule = replace(FLIPPING_PRESETS["rise"], step=20)
    graph, state = nnx.split(model)

    def step(state, batch):
        scored = nnx.merge(graph, state), batch["image"], batch["map"]
        road = faithfulness.road(*scored, percentages=[0.5], noise=0.1, key=KEY, numbers=batch["number"])
        values = {
            "deletion": faithfulness.deletion(*scored, preset=rule),
            "drop": faithfulness.confidence_change(*scored)["drop"],
            "morf": road["morf"],
        }
        return {"all": Scores(values, faithfulness.map_status(batch["map"]))}

    def read(i):
        return Row({"image": images[i], "map": maps[i], "number": np.asarray(i, np.int32)})

    program = Program([Task(step)], state, read(0).record, batch_size=8)
    ((outcome,),) = run_together([program], lambda i: [read(i)], count, [[None]], progress=False)
    scores = outcome.scores["all"]
    for i in (0, 7, 9):
        batch = {"image": images[i : i + 1], "map": maps[i : i + 1], "number": np.array([i], np.int32)}
        for name, alone in step(state, batch)["all"].values.items():
            np.testing.assert_allclose(scores.values[name][i], alone[0], atol=2e-6, err_msg=name)

"""ROAD's imputation against a sparse solver, and its orders against loops over one image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import spsolve

from dcls_jax.cam import from_functions, resize
from dcls_jax.eval import faithfulness
from tests.cam.toys import ConvNet
from tests.conftest import normal, slow

KEY = jax.random.key(0)
SIDE = 16


def solved(image, keep):
    """ROAD's system of one image (H, W, C), written out and solved in float64."""
    height, width = keep.shape
    unknown = {tuple(pixel): i for i, pixel in enumerate(np.argwhere(~keep))}
    matrix, right = sparse.lil_matrix((len(unknown), len(unknown))), np.zeros((len(unknown), image.shape[-1]))
    for (y, x), i in unknown.items():
        for dy, dx in np.ndindex(3, 3):
            there = y + dy - 1, x + dx - 1
            if (dy, dx) == (1, 1) or not (0 <= there[0] < height and 0 <= there[1] < width):
                continue
            weight = 1 / 6 if 1 in (dy, dx) else 1 / 12
            matrix[i, i] += weight
            if there in unknown:
                matrix[i, unknown[there]] -= weight
            else:
                right[i] += weight * image[there]
    filled = image.astype(np.float64).copy()
    if unknown:
        filled[~keep] = spsolve(sparse.csc_matrix(matrix), right).reshape(right.shape)
    return filled


def masks(height, width):
    """Holes of all kinds: scattered, one large, all but a blob, all but a pixel, at the border, none."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 3)
    return {
        "scattered": rng.random((height, width)) < 0.5,
        "few left": rng.random((height, width)) < 0.05,
        "hole": distance > min(height, width) / 3,
        "blob left": distance < min(height, width) / 5,
        "pixel left": (y == 1) & (x == width - 1),
        "border": (y > 2) & (x < width - 3),
        "nothing missing": np.ones((height, width), bool),
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (45, 23)])
def test_imputation_is_the_sparse_solvers(size):
    kinds = masks(*size)
    images = np.asarray(normal(len(kinds), *size, 3))
    images = np.asarray(jax.image.resize(images[:, ::4, ::4], images.shape, "bilinear")) + 0.1 * images
    keep = np.stack(list(kinds.values()))
    filled = faithfulness.impute(images, keep, noise=0, key=KEY)
    for kind, image, kept, own in zip(kinds, images, keep, filled, strict=True):
        np.testing.assert_allclose(own, solved(image, kept), atol=1e-5, err_msg=kind)
        np.testing.assert_array_equal(own[kept], image[kept])


def test_a_ramp_with_a_hole_is_reproduced():
    ramp = np.add.outer(np.arange(9.0), 2 * np.arange(11.0)).astype(np.float32)[None, ..., None]
    keep = np.ones((1, 9, 11), bool)
    keep[0, 3:6, 4:8] = False
    np.testing.assert_allclose(faithfulness.impute(ramp, keep, noise=0, key=KEY), ramp, atol=1e-5)


@pytest.mark.parametrize(("slopes", "corner"), [((1, 1), 1.2), ((0, 1), 0.6)])
def test_a_hole_at_the_corner_of_a_ramp(slopes, corner):
    ramp = np.add.outer(slopes[0] * np.arange(5.0), slopes[1] * np.arange(5.0)).astype(np.float32)[None, ..., None]
    keep = np.ones((1, 5, 5), bool)
    keep[0, 0, 0] = False
    np.testing.assert_allclose(faithfulness.impute(ramp, keep, noise=0, key=KEY)[0, 0, 0, 0], corner, atol=1e-6)


@pytest.mark.slow
def test_an_image_is_imputed_alike_whatever_is_beside_it():
    kinds = masks(40, 40)
    image = normal(1, 40, 40, 3)
    easy, hard = (kinds[kind][None] for kind in ("scattered", "blob left"))
    twice = jnp.concatenate([image, image])
    for keep in (easy, hard):
        alone = faithfulness.impute(twice, np.concatenate([keep, keep]), noise=0, key=KEY)
        beside = faithfulness.impute(twice, np.concatenate([keep, hard]), noise=0, key=KEY)
        np.testing.assert_array_equal(alone[0], beside[0])


@pytest.mark.slow
def test_noise_falls_on_what_is_imputed_alone():
    images, keep = jnp.zeros((2, 32, 32, 3)), jnp.arange(32 * 32).reshape(1, 32, 32) % 2 == 0
    keep = jnp.concatenate([keep, keep])
    noisy = faithfulness.impute(images, keep, noise=(0.1, 0.2, 0.3), key=KEY)
    assert (np.asarray(noisy)[np.asarray(keep)] == 0).all()
    np.testing.assert_allclose(noisy[0][~keep[0]].std(0), [0.1, 0.2, 0.3], rtol=0.1)
    np.testing.assert_array_equal(noisy[0], noisy[1])
    each = faithfulness.impute(images, keep, noise=0.1, key=jax.random.split(KEY))
    assert np.abs(each[0] - each[1]).max() > 0.1
    np.testing.assert_array_equal(each, faithfulness.impute(images, keep, noise=0.1, key=jax.random.split(KEY)))


def test_of_nothing_nothing_is_made():
    nothing = faithfulness.impute(normal(1, 8, 8, 3), jnp.zeros((1, 8, 8), bool), noise=0, key=KEY)
    np.testing.assert_array_equal(nothing, 0)


def probabilities(model, image):
    return np.asarray(jax.nn.softmax(model.head(model.features(jnp.asarray(image, jnp.float32)[None])))[0])


@pytest.mark.slow
def test_the_official_order_keeps_what_its_loop_keeps():
    model, images, maps = ConvNet(), normal(2, SIDE, SIDE, 3), normal(2, SIDE, SIDE, seed=4)
    shares = (0.1, 0.25, 0.7, 0.9)
    result = faithfulness.road(model, images, maps, percentages=shares, noise=0.0, key=KEY)
    for i, (image, importance) in enumerate(zip(np.asarray(images), np.asarray(maps), strict=True)):
        label = probabilities(model, image).argmax()
        order = np.argsort(-importance.ravel())  # distinct by more than the order's noise
        for j, share in enumerate(shares):
            cut = int(SIDE * SIDE * share)
            for kind, removed in (("morf", order[:cut]), ("lerf", order[cut:])):
                keep = np.ones(SIDE * SIDE, bool)
                keep[removed] = False
                expected = probabilities(model, solved(image, keep.reshape(SIDE, SIDE)))[label]
                np.testing.assert_allclose(result[kind][i, j], expected, atol=1e-5)


@pytest.mark.slow
def test_equal_pixels_fall_by_chance_alike_in_all_images():
    kept = []

    def features(_, x):
        return x

    def head(_, x):
        jax.debug.callback(lambda x: kept.append(np.asarray(x)), x)
        return jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)

    model = from_functions(features, head, ())
    # Of pixels 1e6 apart, none that is imputed is still its own.
    images = jnp.tile(1e6 * jnp.arange(1.0, 1 + SIDE**2).reshape(1, SIDE, SIDE, 1) % 7.3e5, (2, 1, 1, 1))
    faithfulness.road(model, images, jnp.ones((2, 4, 4)), percentages=[0.5], noise=0.0, std=1.0, key=KEY, chunk=4)
    jax.effects_barrier()
    versions = next(x for x in kept if len(x) == 4)  # morf and lerf of one image, then of the other
    morf, lerf, other, _ = (np.abs(x[..., 0] - images[0, ..., 0]) < 1e-3 for x in versions)
    np.testing.assert_array_equal(morf, other)
    assert abs(morf.sum() - SIDE**2 / 2) < 4
    assert 20 < (morf[: SIDE // 2]).sum() < 108  # not by index
    assert (morf ^ lerf).mean() > 0.95


@pytest.mark.parametrize("kind", ["floored", slow("distinct")])
def test_percentiles_are_pytorch_grad_cams(kind):
    model, images = ConvNet(), normal(2, SIDE, SIDE, 3)
    maps = np.asarray(normal(2, SIDE, SIDE, seed=4)).copy()
    if kind == "floored":
        maps = np.maximum(maps, np.quantile(maps, 0.9))  # at the 80th percentile, every pixel goes
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, (1, 2), keepdims=True)
    shares = (0.2, 0.5, 0.8)
    options = {"preset": "pytorch_grad_cam", "noise": 0.0, "key": KEY}
    result = faithfulness.road(model, images, maps, percentages=shares, **options)
    for i, (image, importance) in enumerate(zip(np.asarray(images), maps, strict=True)):
        label = probabilities(model, image).argmax()
        for j, share in enumerate(shares):
            for order, values in (("morf", importance), ("lerf", 1 - importance)):
                keep = values < np.percentile(values, 100 * share)
                expected = solved(image, keep) if keep.any() else np.zeros_like(image)
                np.testing.assert_allclose(result[order][i, j], probabilities(model, expected)[label], atol=1e-5)


@pytest.mark.slow
def test_noise_is_of_pixels_or_of_the_models_input_as_the_preset_says():
    images, maps = jnp.zeros((1, 32, 32, 3)), normal(1, 32, 32)

    def deviation(_, x):
        return 100 * jnp.stack([x[..., 0].std((1, 2)), 0 * x[:, 0, 0, 0]], 1)

    model = from_functions(lambda _, x: x, deviation, ())
    for preset, sigma in (("official", 0.02 / 0.5), ("pytorch_grad_cam", 0.02)):
        options = {"preset": preset, "percentages": [0.5], "noise": 0.02, "std": (0.5, 1, 1)}
        score = faithfulness.road(model, images, maps, lambda logits: logits[0], key=KEY, **options)
        np.testing.assert_allclose(score["morf"], 100 * sigma * np.sqrt(0.5), rtol=0.1)


@pytest.mark.slow
def test_each_image_of_a_data_set_has_its_own_noise_wherever_it_is_evaluated():
    model, maps = ConvNet(), jnp.tile(normal(1, 4, 4), (3, 1, 1))
    images = jnp.tile(normal(1, SIDE, SIDE, 3), (3, 1, 1, 1))
    whole = faithfulness.road(model, images, maps, noise=0.5, key=KEY)["morf"]
    assert np.abs(whole[0] - whole[1]).min() > 1e-4
    apart = faithfulness.road(model, images[:2], maps[:2], noise=0.5, key=KEY, numbers=[2, 0])["morf"]
    np.testing.assert_allclose(apart, whole[jnp.array([2, 0])], atol=1e-6)
    other = faithfulness.road(model, images, maps, noise=0.5, key=jax.random.key(1))["morf"]
    assert np.abs(other - whole).min() > 1e-5


@pytest.mark.slow
def test_shapes_and_defaults():
    model, images, maps = ConvNet(), normal(2, SIDE, SIDE, 3), normal(2, 4, 4)
    official = faithfulness.road(model, images, maps, key=KEY)
    assert official["morf"].shape == official["lerf"].shape == (2, 7)
    scaled = faithfulness.road(model, images, maps / 2**20, key=KEY)
    np.testing.assert_array_equal(scaled["morf"], official["morf"])
    peers = faithfulness.road(model, images, maps, preset="pytorch_grad_cam", key=jax.random.PRNGKey(0))
    assert peers["morf"].shape == peers["lerf"].shape == (2, 9)
    small = faithfulness.road(model, images, resize(maps, SIDE), key=KEY)
    np.testing.assert_allclose(small["lerf"], official["lerf"], atol=1e-6)


IMAGES, KEEP = np.zeros((2, 8, 8, 3), np.float32), np.ones((2, 8, 8), bool)
ROAD_WRONG = [
    ({"preset": "road"}, r"preset \(='road'\) must be one of official, pytorch_grad_cam"),
    ({"percentages": [50]}, r"percentages \(=\[50\]\) must be shares between 0 and 1"),
    ({"percentages": []}, r"percentages \(=\[\]\) must be"),
    ({"maps": np.full((2, 3, 3), np.inf)}, r"maps of images 0, 1 are not finite"),
    ({"maps": np.zeros((1, 3, 3))}, r"maps have shape \(1, 3, 3\), expected \(2, h, w\)"),
    ({"std": (1.0, 1.0)}, r"std has shape \(2,\), expected one number or one for each of 3 channels"),
    ({"key": jax.random.split(KEY)}, r"key has shape \(2,\), expected one for all images"),
    ({"numbers": [1]}, r"numbers have shape \(1,\), expected \(2,\)"),
    ({"targets": [0, 9]}, r"targets hold label 9"),
]


@pytest.mark.parametrize(("wrong", "message"), ROAD_WRONG)
def test_road_refuses_what_does_not_fit(wrong, message):
    given = {"images": IMAGES, "maps": np.zeros((2, 3, 3)), "key": KEY, **wrong}
    with pytest.raises(ValueError, match=message):
        faithfulness.road(ConvNet(), **given)


@pytest.mark.parametrize(
    ("images", "keep", "options", "message"),
    [
        (IMAGES[0], KEEP, {}, r"images have shape \(8, 8, 3\)"),
        (IMAGES, KEEP[:1], {}, r"keep has shape \(1, 8, 8\) and dtype bool, expected \(2, 8, 8\) and bool"),
        (IMAGES, KEEP.astype(float), {}, r"keep has shape \(2, 8, 8\) and dtype float"),
        (IMAGES, KEEP, {"noise": (1, 2)}, r"noise has shape \(2,\)"),
    ],
)
def test_impute_refuses_what_does_not_fit(images, keep, options, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.impute(images, keep, key=KEY, **options)

"""How alike two maps are, against loops over pixels, closed forms, and scikit-image."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dcls_jax.cam import resize
from dcls_jax.eval import sanity

Map = np.ndarray


def enlarged(seed: int, cells: int, size: tuple[int, int]) -> Map:
    return np.asarray(resize(np.random.default_rng(seed).standard_normal((cells, cells)).astype(np.float32), size))


def pairs() -> Iterator[tuple[Map, Map]]:
    """Of coarse maps that were enlarged, with ties, of noise, and of one and the same with some noise."""
    yield enlarged(0, 7, (224, 224)), enlarged(1, 7, (224, 224))
    yield np.maximum(enlarged(2, 14, (96, 75)), 0), np.maximum(enlarged(3, 14, (96, 75)), 0)
    noise = np.random.default_rng(4).standard_normal((2, 100, 64)).astype(np.float32)
    yield noise[0], 5 + noise[1]
    yield enlarged(5, 7, (100, 64)), enlarged(5, 7, (100, 64)) + noise[0] / 20


def weights_1d() -> np.ndarray:
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return taps / taps.sum()


def ssim_of_window(a: Map, b: Map, weights: np.ndarray, data_range: float) -> float:
    """Wang et al.'s formula for one window, with the covariance of a sample."""
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    sample = weights.size / (weights.size - 1)
    var_a, var_b = (sample * ((weights * m**2).sum() - mean**2) for m, mean in ((a, mean_a), (b, mean_b)))
    cov = sample * ((weights * a * b).sum() - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def ssim_by_hand(a: Map, b: Map, data_range: float) -> float:
    a, b = a.astype(float), b.astype(float)
    weights = np.outer(weights_1d(), weights_1d())
    places = [np.s_[i : i + 11, j : j + 11] for i in range(a.shape[0] - 10) for j in range(a.shape[1] - 10)]
    return float(np.mean([ssim_of_window(a[place], b[place], weights, data_range) for place in places]))


def hog_by_hand(map: Map) -> np.ndarray:
    """Pixel by pixel, orientations as angles."""
    height, width = map.shape
    cells = np.zeros((height // 16, width // 16, 9))
    for i in range(height // 16 * 16):
        for j in range(width // 16 * 16):
            down = float(map[i + 1, j] - map[i - 1, j]) if 0 < i < height - 1 else 0.0
            right = float(map[i, j + 1] - map[i, j - 1]) if 0 < j < width - 1 else 0.0
            angle = np.degrees(np.arctan2(down, right)) % 180
            cells[i // 16, j // 16, int(angle // 20) % 9] += np.hypot(down, right) / 256
    features = []
    for i in range(len(cells) - 2):
        for j in range(cells.shape[1] - 2):
            block = cells[i : i + 3, j : j + 3].ravel()
            block = np.minimum(block / np.sqrt((block**2).sum() + 1e-10), 0.2)
            features.append(block / np.sqrt((block**2).sum() + 1e-10))
    return np.concatenate(features)


def test_values_are_those_of_loops() -> None:
    a, b = enlarged(0, 5, (50, 67)), enlarged(1, 5, (50, 67))
    found = sanity.similarity(a, b)
    data_range = max(a.max(), b.max()) - min(a.min(), b.min())
    expected = {
        "spearman": stats.spearmanr(a.ravel(), b.ravel())[0],
        "spearman_abs": stats.spearmanr(np.abs(a).ravel(), np.abs(b).ravel())[0],
        "ssim": ssim_by_hand(a, b, data_range),
        "hog": stats.spearmanr(hog_by_hand(a), hog_by_hand(b))[0],
    }
    assert found == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
    assert all(value.dtype == jnp.float32 for value in found.values())
    np.testing.assert_allclose(sanity.hog(a), hog_by_hand(a), atol=2e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_ssim_of_lines_by_themselves(axis: int) -> None:
    a, b = np.random.default_rng(0).random((2, 14, 13), np.float32)
    lines = [(m.T if axis == 0 else m).astype(float) for m in (a, b)]
    expected = [
        ssim_of_window(x[i : i + 11], y[i : i + 11], weights_1d(), 2.0)
        for x, y in zip(*lines, strict=True)
        for i in range(len(x) - 10)
    ]
    assert sanity.ssim(a, b, axes=(axis,), data_range=2.0) == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.slow
def test_the_notebook_of_the_paper_compares_columns_of_maps_in_the_unit_range() -> None:
    a, b = enlarged(0, 7, (64, 64)), 3 * enlarged(1, 7, (64, 64)) - 1
    found, standard = (sanity.similarity(a, b, preset=preset) for preset in ("adebayo", "standard"))
    x, y = ((m - m.min()) / (m.max() - m.min()) for m in (a, b))
    assert found["ssim"] == pytest.approx(float(sanity.ssim(x, y, axes=(0,), data_range=2.0)), abs=1e-6)
    assert found["hog"] == pytest.approx(float(sanity.similarity(x, y)["hog"]), abs=1e-6)
    assert {name: found[name] for name in ("spearman", "spearman_abs")} == {
        name: standard[name] for name in ("spearman", "spearman_abs")
    }
    assert found["ssim"] != pytest.approx(float(standard["ssim"]), abs=0.01)


@pytest.mark.slow
def test_a_map_is_like_itself_and_opposed_to_its_negative() -> None:
    a = enlarged(0, 7, (64, 80))
    assert sanity.similarity(a, a) == {
        name: pytest.approx(1, abs=1e-6) for name in ("spearman", "spearman_abs", "ssim", "hog")
    }
    opposed = sanity.similarity(a, -a)
    assert opposed["spearman"] == pytest.approx(-1, abs=1e-6)
    assert opposed["spearman_abs"] == pytest.approx(1, abs=1e-6)
    assert opposed["hog"] == pytest.approx(1, abs=1e-6)  # half a turn is no turn


def test_the_last_bits_of_a_map_turn_no_gradient() -> None:
    a = 1 + np.abs(enlarged(0, 7, (64, 64)))  # constant along each border
    bits = np.random.default_rng(0).integers(-1, 2, a.shape).astype(np.float32) * np.spacing(a)
    np.testing.assert_allclose(sanity.hog(a + bits), sanity.hog(a), atol=1e-4)


def test_values_that_quantus_publishes() -> None:
    a, b = (np.tile(np.array(row, np.float32), (48, 16)) for row in ((-1, 1, 1), (0, 0, 2)))
    assert sanity.similarity(a, b)["spearman"] == pytest.approx(0.5, abs=1e-6)


def test_gradients_of_a_ramp_have_one_orientation() -> None:
    rows, columns = np.mgrid[:80, :80].astype(np.float32)
    for ramp, orientation in ((columns, 0), (rows, 4), (columns + rows, 2), (columns - rows, 6)):
        middle = np.asarray(sanity.hog(ramp)).reshape(9, 9, 9)[4]  # of nine blocks, that which touches no border
        assert set(np.flatnonzero(middle.sum(0))) == {orientation}
        np.testing.assert_allclose(middle[:, orientation], 1 / 3, atol=1e-6)  # nine cells alike, clipped alike


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_ssim_does_not_depend_on_the_scale_of_both(scale: float) -> None:
    a, b = enlarged(0, 7, (50, 50)), enlarged(1, 7, (50, 50))
    scaled = sanity.ssim(scale * a, scale * b)
    assert scaled == pytest.approx(float(sanity.ssim(a, b)), abs=1e-6)


def test_constant_maps_have_no_correlation() -> None:
    constant, other = np.ones((48, 48)), enlarged(0, 7, (48, 48))
    for found in (sanity.similarity(constant, other), sanity.similarity(other, constant)):
        assert all(np.isnan(found[name]) for name in ("spearman", "spearman_abs", "hog"))
        assert np.isfinite(found["ssim"])
    assert np.isnan(sanity.ssim(constant, constant))


@pytest.mark.slow
def test_many_maps_at_once(strict: None) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 3, 48, 50)).astype(np.float32)
    together = jax.jit(jax.vmap(sanity.similarity))(a, b)
    for i in range(3):
        alone = sanity.similarity(a[i], b[i])
        assert {name: of[i] for name, of in together.items()} == {
            name: pytest.approx(float(value), abs=1e-6) for name, value in alone.items()
        }
    unseen = jax.vmap(sanity.similarity)(np.where(a > 2, np.float32(np.nan), a), b)
    assert all(np.isnan(of).all() for of in unseen.values())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((48, 48)), np.ones((48, 49)), r"maps have shapes \(48, 48\) and \(48, 49\), expected the same"),
        (np.ones((7, 7)), np.ones((7, 7)), r"maps have shape \(7, 7\), expected \(H, W\), at least 48 x 48: enlarge"),
        (np.ones((2, 48, 48)), np.ones((2, 48, 48)), r"maps have shape \(2, 48, 48\), expected \(H, W\)"),
        (np.full((48, 48), np.nan), np.ones((48, 48)), "maps hold 2304 values that are not finite"),
    ],
)
def test_maps_that_cannot_be_compared_are_named(a: Map, b: Map, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sanity.similarity(a, b)


def test_unknown_options_are_named() -> None:
    a = np.ones((48, 48))
    with pytest.raises(ValueError, match=r"preset \(='rise'\) must be one of standard, adebayo"):
        sanity.similarity(a, a, preset="rise")
    with pytest.raises(ValueError, match=r"axes \(=\(2,\)\) must be \(0, 1\), \(0,\) or \(1,\)"):
        sanity.ssim(a, a, axes=(2,))


@pytest.mark.slow
def test_entropy_of_histograms() -> None:
    every = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    two = np.where(every < 5000, 0, 7).astype(np.float32)
    assert sanity.entropy(every) == pytest.approx(np.log(100), abs=1e-3)  # values at the edges of bins are rounded
    assert sanity.entropy(two) == pytest.approx(np.log(2), abs=1e-6)
    assert sanity.entropy(np.ones((3, 3))) == 0
    for map in (enlarged(0, 7, (224, 224)), np.maximum(enlarged(1, 7, (90, 80)), 0)):
        for bins in (10, 100, 200):
            expected = stats.entropy(np.histogram(map, bins)[0])
            assert sanity.entropy(map, bins=bins) == pytest.approx(expected, abs=1e-3)


def test_the_rise_of_entropy_is_relative() -> None:
    few, many = (np.tile(np.arange(n, dtype=np.float32), (6, 12 // n)) for n in (2, 4))
    assert sanity.entropy_rise(few, many) == pytest.approx(1, abs=1e-6)  # from log 2 to log 4
    assert sanity.entropy_rise(many, few) == pytest.approx(-0.5, abs=1e-6)
    assert np.isnan(sanity.entropy_rise(np.ones((6, 12)), many))


@pytest.mark.parity
def test_values_are_those_of_scikit_image() -> None:
    feature, metrics = (pytest.importorskip(f"skimage.{name}") for name in ("feature", "metrics"))
    for a, b in pairs():
        found = sanity.similarity(a, b)
        x, y = a.astype(float), b.astype(float)
        span = max(x.max(), y.max()) - min(x.min(), y.min())
        whole = metrics.structural_similarity(x, y, gaussian_weights=True, data_range=span)
        columns = metrics.structural_similarity(x, y, gaussian_weights=True, data_range=2.0, channel_axis=1)
        hogs = [feature.hog(m, pixels_per_cell=(16, 16)) for m in (a, b)]
        assert found["ssim"] == pytest.approx(whole, abs=1e-5)
        assert sanity.ssim(a, b, axes=(0,), data_range=2.0) == pytest.approx(columns, abs=1e-5)
        np.testing.assert_allclose(sanity.hog(a), hogs[0], atol=5e-6)
        assert found["hog"] == pytest.approx(stats.spearmanr(*hogs)[0], abs=1e-5)

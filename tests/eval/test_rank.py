"""Ranks and Spearman's correlation against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dcls_jax import native
from dcls_jax.eval import rank
from dcls_jax.eval.rank import average_ranks, places, spearman, tied_share

pytestmark = pytest.mark.optimised

N = 224 * 224


def _maps() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(N)
    coarse = jax.image.resize(jnp.asarray(rng.standard_normal((7, 7)), jnp.float32), (224, 224), "bilinear").ravel()
    kinds = {
        "normal": normal,
        "floored": np.maximum(rng.random(N), 0.3),
        "map": np.maximum(coarse, 0),
        "few values": rng.integers(0, 3, N),
        "one outlier": np.where(np.arange(N) == 7, 1e30, normal),
        "many magnitudes": np.exp(15 * normal),
        "largest floats": normal * np.finfo(np.float32).max / np.abs(normal).max(),
    }
    return {kind: np.asarray(values, np.float32) for kind, values in kinds.items()}


MAPS = _maps()


@pytest.fixture(scope="module", params=["native", "plain", "sorting"], autouse=True)
def _implementation(request):
    if request.param == "native" and not native.available():
        pytest.skip("the native kernels are not built here")
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "native":
            patch.setattr(native, "available", lambda: False)
        if request.param == "sorting":  # as on a GPU or TPU
            patch.setattr(rank, "_finite_ranks", rank._ranks_by_sorting)
            patch.setattr(rank, "_spearman_without_a_sort", rank._spearman_by_sorting)
        jax.clear_caches()
        yield
    jax.clear_caches()


ranks_of, correlation_of = jax.jit(average_ranks), jax.jit(spearman)


@pytest.mark.parametrize("kind", MAPS)
def test_ranks_are_scipys_exactly(kind: str) -> None:
    np.testing.assert_array_equal(ranks_of(MAPS[kind]), stats.rankdata(MAPS[kind]))


@pytest.mark.parametrize(
    ("values", "ranks"), [([5.0], [1]), ([2, 1, 2, 0], [3.5, 2, 3.5, 1]), ([0.0, -0.0], [1.5, 1.5])]
)
def test_ranks_by_hand(values: list[float], ranks: list[float]) -> None:
    np.testing.assert_array_equal(ranks_of(np.asarray(values, np.float32)), ranks)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 63, 64, 65, 4097])
def test_ranks_at_any_size(size: int) -> None:
    values = np.random.default_rng(size).integers(0, size, size).astype(np.float32)
    np.testing.assert_array_equal(ranks_of(values), stats.rankdata(values))


def test_spearman_is_scipys_jitted_and_vmapped() -> None:
    a = np.stack(list(MAPS.values()))
    b = np.stack([MAPS["map"] + 0.1 * MAPS["normal"]] * len(a))
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(spearman))(a, b), expected, atol=1e-6)
    np.testing.assert_allclose(spearman(jnp.asarray(a[2]), jnp.asarray(b[2])), expected[2], atol=1e-6)


@pytest.mark.parametrize("filler", [0.3, np.nan])
def test_a_map_without_ranks_gives_nan(filler: float) -> None:
    ramp = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert np.isnan(correlation_of(np.full((4, 4), filler, np.float32), ramp))
    assert np.isnan(correlation_of(ramp, np.where(ramp == 6, np.float32(np.inf), ramp)))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 2\)"):
        spearman(jnp.zeros((2, 3)), jnp.zeros((3, 2)))


@pytest.mark.parametrize("ties", ["earlier", "later"])
def test_places_are_those_of_a_stable_sort(ties):
    values = np.random.default_rng(0).integers(0, 40, (3, 500)).astype(np.float32)
    expected = np.empty(values.shape, int)
    for row, order in zip(values, expected, strict=True):
        first = np.argsort(row, kind="stable")[::-1] if ties == "later" else np.argsort(-row, kind="stable")
        order[first] = np.arange(500)
    np.testing.assert_array_equal(jax.jit(lambda x: places(x, ties=ties))(values), expected)


def test_places_of_equal_values_are_those_of_the_next_key():
    first, second = jnp.asarray([1.0, 0, 1, 0]), jnp.asarray([5.0, 6, 7, -8])
    np.testing.assert_array_equal(places(first, second), [1, 2, 0, 3])
    np.testing.assert_array_equal(places(first, jnp.zeros(4)), [0, 2, 1, 3])
    np.testing.assert_array_equal(places(jnp.asarray([0.0, -0.0, 1, -1])), [1, 2, 0, 3])


def test_the_share_of_ties_counts_every_value_that_is_there_twice():
    assert tied_share(jnp.asarray([3.0, 1, 3, 2, 1, 3, 0, -1])) == 5 / 8
    np.testing.assert_array_equal(tied_share(jnp.asarray([[1.0, 2], [2, 2]])), [0, 1])

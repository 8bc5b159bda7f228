"""Intervals, tests and effect sizes: against enumerations, closed forms, SciPy and statsmodels."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from dcls_jax.eval import statistics

KEY = jax.random.key(5)
RNG = np.random.default_rng(3)
SKEWED = RNG.gamma(4, size=(60, 2))  # four is mild: quantiles of 60 are nearly normal
TIED = np.round(RNG.normal(0.2, 1, 60), 1), np.round(RNG.normal(0, 1, 60), 1)
BY_CLASS = {"a": (0.0, 1.0), "b": (4.0,)}


def with_zeros(share: float, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    return a, np.where(rng.random(n) < share, a, b)


def equally_likely(balanced: bool) -> Iterator[tuple[float, float]]:
    """Every resample of BY_CLASS in two stages, with its probability: the mean of its images, or of its classes."""
    for drawn in product(BY_CLASS, repeat=2):
        draws = [list(product(BY_CLASS[name], repeat=len(BY_CLASS[name]))) for name in drawn]
        for images in product(*draws):
            mean = np.mean([np.mean(of) for of in images]) if balanced else np.mean([x for of in images for x in of])
            yield float(mean), 1 / 4 / math.prod(map(len, draws))


def quantile(resamples: list[tuple[float, float]], level: float) -> float:
    """The quantile of an exact distribution, at a level that 10,000 draws from it cannot mistake: 0.02 is 4 sigma."""
    values = sorted({round(value, 9) for value, _ in resamples})
    reached = np.array([sum(share for value, share in resamples if value < at + 1e-9) for at in values])
    assert abs(reached - level).min() > 0.02
    return values[int(np.searchsorted(reached, level))]


@pytest.mark.parametrize("confidence", [0.8, 0.3])
@pytest.mark.parametrize("design", ["images", "classes", "balanced"])
def test_interval_is_that_of_all_resamples(design: str, confidence: float) -> None:
    labels = ["a", "b", "a"]
    scores = np.array([0.0, 4.0, 1.0])  # of `BY_CLASS`, not in its order
    options: dict[str, Any] = {} if design == "images" else {"classes": labels, "balanced": design == "balanced"}
    images = [(sum(of) / 3, 1 / 27) for of in product(scores, repeat=3)]
    resamples = images if design == "images" else list(equally_likely(design == "balanced"))
    interval = statistics.paired_bootstrap(scores, key=KEY, confidence=confidence, **options)
    assert interval.mean == pytest.approx(2.25 if design == "balanced" else 5 / 3)
    assert interval.low == pytest.approx(quantile(resamples, (1 - confidence) / 2))
    assert interval.high == pytest.approx(quantile(resamples, (1 + confidence) / 2))


@pytest.mark.parametrize("kind", ["percentile", "BCa"])
def test_interval_is_scipys(kind: str) -> None:
    ours = statistics.paired_bootstrap(SKEWED, key=KEY, kind=kind.lower())  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    theirs = stats.bootstrap((SKEWED,), np.mean, n_resamples=10_000, method=kind, random_state=rng).confidence_interval
    # A quantile of 10,000 draws is off by sqrt(0.025 * 0.975 / 10,000) / 0.0584 = 0.027 standard errors where they are
    # normal, and the difference of two by 0.038; 0.17 is 4.5 times that.
    bound = 0.17 * SKEWED.std(0, ddof=1) / np.sqrt(len(SKEWED))
    assert np.array_equal(ours.mean, SKEWED.mean(0))
    assert (abs(ours.low - theirs.low) < bound).all()
    assert (abs(ours.high - theirs.high) < bound).all()


def test_acceleration_and_bias_move_an_interval() -> None:
    skewed = np.random.default_rng(0).exponential(size=40) ** 2
    percentile = statistics.paired_bootstrap(skewed, key=KEY)
    bca = statistics.paired_bootstrap(skewed, key=KEY, kind="bca")
    assert bca.low > percentile.low
    assert bca.high > percentile.high + 0.1 * skewed.std()
    groups = np.repeat(np.arange(20), 2)  # of two rows each: left out together
    by_class = statistics._left_out(skewed[:, None], statistics._groups(40, groups))
    assert np.allclose(by_class[:, 0], [skewed[groups != group].mean() for group in range(20)])


def test_columns_are_resampled_together() -> None:
    x = RNG.normal(size=50)
    both = statistics.paired_bootstrap(np.stack([x, 2 * x + 3, x - (x + 1)], axis=1), key=KEY)
    alone = statistics.paired_bootstrap(x, key=KEY)
    assert np.shape(alone.low) == ()
    assert np.allclose(both.low, [alone.low, 2 * alone.low + 3, -1], atol=1e-6)
    assert np.allclose(both.high, [alone.high, 2 * alone.high + 3, -1], atol=1e-6)
    assert statistics.paired_bootstrap(x, key=jax.random.key(6)).low != alone.low


@pytest.mark.slow
def test_rows_that_are_drawn_do_not_depend_on_how_many_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = np.arange(60) % 7
    whole = statistics.paired_bootstrap(SKEWED, key=KEY, resamples=250, classes=classes)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 500)
    statistics._resampled_means.clear_cache()
    parts = statistics.paired_bootstrap(SKEWED, key=KEY, resamples=250, classes=classes)
    statistics._resampled_means.clear_cache()
    assert np.allclose(whole, parts, rtol=1e-6)


def test_scores_with_a_large_mean_keep_their_differences() -> None:
    x = RNG.normal(size=40)
    far, near = (statistics.paired_bootstrap(of, key=KEY, resamples=500) for of in (x + 1e6, x))
    assert far.high - 1e6 == pytest.approx(near.high, abs=1e-6)


@pytest.mark.slow
def test_images_that_do_not_count_for_a_column_are_left_out_of_its_mean() -> None:
    scores = np.random.default_rng(0).gamma(4, size=(400, 2))
    whole = statistics.paired_bootstrap(scores, key=KEY)
    scores[::4, 1] = np.nan
    found = statistics.paired_bootstrap(scores, key=KEY, missing=True)
    np.testing.assert_allclose([of[0] for of in found], [of[0] for of in whole], rtol=1e-6)
    own = statistics.paired_bootstrap(scores[np.isfinite(scores[:, 1]), 1], key=KEY)
    assert found.mean[1] == pytest.approx(own.mean)
    # Of 10,000 draws a quantile at 2.5 % is known to 2.7 hundredths of sigma: 0.1 is nearly three of such differences.
    sigma = (own.high - own.low) / 3.92
    np.testing.assert_allclose([found.low[1], found.high[1]], [own.low, own.high], atol=0.1 * sigma)


def test_columns_with_missing_images_are_resampled_together() -> None:
    scores = np.random.default_rng(1).normal(size=(300, 2))
    scores[:50] = np.nan
    columns = np.column_stack([scores, scores[:, 0] + 7])
    found = statistics.paired_bootstrap(columns, key=KEY, missing=True)
    np.testing.assert_allclose(found.low[2] - found.low[0], 7, rtol=1e-6)
    np.testing.assert_allclose(found.high[2] - found.high[0], 7, rtol=1e-6)


def test_interval_covers_the_mean() -> None:
    columns = np.random.default_rng(1).normal(0.3, size=(100, 2000))  # 2000 sets of 100 images
    interval = statistics.paired_bootstrap(columns, key=KEY, resamples=2000)
    covered = np.mean((interval.low < 0.3) & (interval.high > 0.3))
    assert 0.93 < covered < 0.97


@pytest.mark.slow
def test_interval_of_classes_covers_the_mean_of_classes_where_that_of_images_does_not() -> None:
    rng = np.random.default_rng(2)
    classes = np.repeat(np.arange(40), rng.integers(3, 9, 40))
    columns = rng.normal(size=(40, 1000))[classes] + rng.normal(size=(len(classes), 1000))

    def covered(**options: Any) -> float:
        interval = statistics.paired_bootstrap(columns, key=KEY, resamples=1000, **options)
        return float(np.mean((interval.low < 0) & (interval.high > 0)))

    assert covered() < 0.8
    assert 0.93 < covered(classes=classes) < 0.98
    assert 0.93 < covered(classes=classes, balanced=True) < 0.98


@pytest.mark.slow
def test_architectures_are_drawn_too() -> None:
    two = np.tile([0.0, 1.0], (5, 1))  # means of 0, 1/2, 1/2 and 1
    assert statistics.bootstrap_over_architectures(two, key=KEY, confidence=0.8) == (0.5, 0, 1)
    assert statistics.bootstrap_over_architectures(two, key=KEY, confidence=0.2) == (0.5, 0.5, 0.5)
    same = np.repeat(SKEWED[:, :1], 8, axis=1)
    of_images = np.diff(statistics.paired_bootstrap(same[:, 0], key=KEY)[1:])
    assert np.diff(statistics.bootstrap_over_architectures(same, key=KEY)[1:]) == pytest.approx(of_images, rel=0.05)


@pytest.mark.slow
def test_interval_within_a_margin_is_equivalence() -> None:
    interval = statistics.Interval(np.zeros(3), np.array([-0.1, -0.3, 0.1]), np.array([0.1, 0.1, 0.3]))
    assert interval.within(0.2).tolist() == [True, False, False]
    difference = RNG.normal(0.05, 0.5, 400)
    p = statistics.equivalence(difference, np.zeros(400), margin=0.1)
    # 1 - 2 p is the confidence at which the interval touches the margin
    assert statistics.paired_bootstrap(difference, key=KEY, confidence=1 - 2 * (p + 0.01)).within(0.1)
    assert not statistics.paired_bootstrap(difference, key=KEY, confidence=1 - 2 * (p - 0.01)).within(0.1)


@pytest.mark.parametrize(("a", "b"), [TIED, with_zeros(0), with_zeros(0.4), with_zeros(0.9), with_zeros(0.3, 9)])
def test_wilcoxon_is_scipys(a: np.ndarray, b: np.ndarray) -> None:
    assert statistics.wilcoxon(a, b) == tuple(stats.wilcoxon(a, b, zero_method="pratt", alternative="two-sided"))
    assert statistics.wilcoxon(b, a) == statistics.wilcoxon(a, b)


def test_wilcoxon_of_few_images_counts_all_signs() -> None:
    ranks = np.arange(1, 8)
    signs = np.array([1, 1, -1, 1, 1, -1, 1])
    smaller = [
        min(sum(np.array(s) * ranks > 0) and ranks[np.array(s) > 0].sum(), 28) for s in product([1, -1], repeat=7)
    ]
    statistic = ranks[signs < 0].sum()
    as_extreme = np.mean([min(plus, 28 - plus) <= statistic for plus in smaller])
    assert statistics.wilcoxon(signs * ranks, np.zeros(7)) == pytest.approx((statistic, as_extreme))


def test_wilcoxon_ranks_zeros_and_drops_them() -> None:
    a, b = with_zeros(0.4)
    d = a - b
    n, zeros = len(d), (d == 0).sum()
    plus = sum(np.sum(abs(d) <= abs(x)) for x in d if x > 0)
    variance = (n * (n + 1) * (2 * n + 1) - zeros * (zeros + 1) * (2 * zeros + 1)) / 24
    z = (plus - (n * (n + 1) - zeros * (zeros + 1)) / 4) / math.sqrt(variance)
    assert statistics.wilcoxon(a, b)[1] == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))


def test_equal_scores_differ_in_nothing() -> None:
    a = np.arange(5.0)
    assert statistics.wilcoxon(a, a) == (0, 1)
    assert statistics.rank_biserial(a, a) == 0
    assert statistics.superiority(a, a) == 0.5
    assert statistics.zero_share(a, a) == 1
    assert statistics.equivalence(a, a, margin=0.1) == 0
    assert statistics.equivalence(a + 1, a, margin=0.5) == 1
    constant = statistics.paired_bootstrap(np.ones((4, 2)), key=KEY, kind="bca")
    assert np.array_equal(constant, np.ones((3, 2)))


@pytest.mark.parametrize(("a", "b"), [TIED, with_zeros(0.3, 9)])
def test_effect_sizes_are_loops_over_pairs(a: np.ndarray, b: np.ndarray) -> None:
    d = a - b
    rank = [np.sum(abs(d) < abs(x)) + (np.sum(abs(d) == abs(x)) + 1) / 2 for x in d]
    plus, minus = (sum(r for r, x in zip(rank, d, strict=True) if sign * x > 0) for sign in (1, -1))
    assert statistics.rank_biserial(a, b) == pytest.approx((plus - minus) / (plus + minus))
    assert min(plus, minus) == pytest.approx(statistics.wilcoxon(a, b)[0])
    assert statistics.superiority(a, b) == pytest.approx(np.mean([1.0 if x > 0 else 0.5 if x == 0 else 0 for x in d]))
    assert statistics.zero_share(a, b) == pytest.approx(np.mean([x == 0 for x in d]))


def test_effect_sizes_reach_from_end_to_end() -> None:
    assert statistics.rank_biserial([1, 2, 3], [0, 2, 1]) == 1
    assert statistics.rank_biserial([0, 2, 1], [1, 2, 3]) == -1
    assert statistics.rank_biserial([3, 1, 0], [0, 0, 2]) == pytest.approx((3 + 1 - 2) / 6)
    assert statistics.superiority([1, 1, 1, 1], [0, 0, 1, 2]) == 0.625


def test_holm_by_hand() -> None:
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04, which may not be below the one before
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.5]).tolist() == [1, 1]
    assert statistics.holm([]).tolist() == []


def test_equivalence_is_two_one_sided_tests() -> None:
    a, b = with_zeros(0.2)
    for margin in (0.1, 0.5, 1.0):
        below = stats.ttest_1samp(a - b, -margin, alternative="greater").pvalue
        above = stats.ttest_1samp(a - b, margin, alternative="less").pvalue
        assert statistics.equivalence(a, b, margin=margin) == pytest.approx(max(below, above), rel=1e-9)


def test_seven_of_eight_is_not_significant() -> None:
    assert statistics.sign_test(7, 8) == pytest.approx(18 / 256)
    assert statistics.sign_test(8, 8) == pytest.approx(2 / 256)
    for n in range(1, 12):
        for wins in range(n + 1):
            tail = sum(math.comb(n, k) for k in range(max(wins, n - wins), n + 1)) / 2**n
            assert statistics.sign_test(wins, n) == pytest.approx(min(1, 2 * tail))
            assert statistics.sign_test(wins, n) == stats.binomtest(wins, n).pvalue


@pytest.mark.parity
def test_holm_and_equivalence_are_those_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    p = np.concatenate([RNG.random(20) ** 4, [0.01, 0.01, 0, 1]])
    assert np.allclose(statistics.holm(p), multitest.multipletests(p, method="holm")[1], rtol=1e-12)
    a, b = with_zeros(0.2)
    for margin in (0.1, 0.5):
        theirs = weightstats.ttost_paired(a, b, -margin, margin)[0]
        assert statistics.equivalence(a, b, margin=margin) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (np.zeros((2, 2, 2)), {}, r"scores must have the shape \(n,\) or \(n, columns\) .* got \(2, 2, 2\)"),
        (np.zeros((1, 3)), {}, r"two rows or more, got \(1, 3\)"),
        ([[0.0], [np.nan], [1.0]], {}, r"scores must be finite, but 1 are not, the first in row 1: compare"),
        (SKEWED, {"key": 0}, r"key \(=0\) must be a key of JAX, such as"),
        (SKEWED, {"resamples": 0}, r"resamples \(=0\) must be at least 1"),
        (SKEWED, {"confidence": 1.0}, r"confidence \(=1.0\) must be between 0 and 1"),
        (SKEWED, {"confidence": 95}, r"confidence \(=95\) must be between 0 and 1"),
        (SKEWED, {"kind": "basic"}, r"kind \(='basic'\) must be 'percentile' or 'bca'"),
        (SKEWED, {"classes": [1, 2]}, r"classes must be a label for each of 60 rows, got shape \(2,\)"),
        (SKEWED, {"classes": [1] * 60}, r"classes must be two or more, got 1"),
        (SKEWED, {"balanced": True}, r"balanced \(=True\) needs classes"),
        (SKEWED, {"missing": True}, r"scores with missing ones must have 100 in each column, got 60"),
        (SKEWED, {"missing": True, "kind": "bca"}, r"missing \(=True\) is neither for balanced means nor for BCa"),
        ([[np.inf]] * 200, {"missing": True}, r"scores must be finite, but 200 are not, the first in row 0"),
    ],
)
def test_wrong_arguments_of_the_bootstrap(scores: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics.paired_bootstrap(scores, **{"key": KEY} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.wilcoxon([1, 2], [1, 2, 3]), r"of the same images, got shapes \(2,\) and \(3,\)"),
        (lambda: statistics.wilcoxon([1], [2]), r"a must have the shape \(n,\) with two rows or more, got \(1,\)"),
        (lambda: statistics.rank_biserial([1, 2], [1, np.inf]), r"b must be finite, but 1 are not, the first in row 1"),
        (lambda: statistics.superiority(np.ones((2, 2)), [1, 2]), r"a must have the shape \(n,\)"),
        (lambda: statistics.zero_share([1, 2], [np.nan, 2]), r"b must be finite"),
        (lambda: statistics.equivalence([1, 2], [1, 3], margin=0), r"margin \(=0\) must be positive and finite"),
        (lambda: statistics.Interval(*np.zeros((3, 1))).within(-1), r"margin \(=-1\) must be positive"),
        (lambda: statistics.holm([0.1, 1.1]), r"p \(=\[0.1, 1.1\]\) must be one row of p-values between 0 and 1"),
        (lambda: statistics.holm([0.1, np.nan]), r"p \(="),
        (lambda: statistics.sign_test(9, 8), r"wins \(=9\) must be between 0 and n \(=8\)"),
        (lambda: statistics.sign_test(0, 0), r"n at least 1"),
        (
            lambda: statistics.bootstrap_over_architectures(np.ones((4, 1)), key=KEY),
            r"two architectures or more, got shape \(4, 1\)",
        ),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

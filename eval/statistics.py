"""What may be said of scores: intervals, tests and effect sizes, all paired by image.

Every model and method scores the same images, so that a comparison is one of differences, image by image. Columns are
resampled together; the interval of a difference is that of the column of differences. With tens of thousands of images
almost every difference is significant: read effect sizes, and a margin that was chosen beforehand.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from scipy import special, stats

Kind = Literal["percentile", "bca"]

LEAST_WITH_MISSING = 100  # scores in a column; that none of so many is drawn does not happen
_DRAWS_AT_ONCE = 2**22  # of all resamples that are in memory together


class Interval(NamedTuple):
    """The mean of each column, and the bounds of its confidence interval: float64, of the columns' shape."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def within(self, margin: float) -> np.ndarray:
        """Whether the whole interval lies inside -margin .. margin: bool, of the columns' shape.

        Of an interval of confidence 1 - 2 alpha this is the test of equivalence (TOST) at level alpha: 0.9 for 5 %.
        """
        _check_margin(margin)
        return (-margin < self.low) & (self.high < margin)


def paired_bootstrap(
    scores: ArrayLike,
    *,
    key: Array,
    resamples: int = 10_000,
    confidence: float = 0.95,
    classes: ArrayLike | None = None,
    balanced: bool = False,
    missing: bool = False,
    kind: Kind = "percentile",
) -> Interval:
    """Bootstrap intervals of the columns' means, with the same rows drawn for all columns.

    scores: (n, columns), or (n,) for a single column, a row for each image. key: of `jax.random.key`; it decides which
    rows of n are drawn. classes: (n,) labels, for a claim about classes: these are drawn first and then, for each, as
    many of its images as it has, which is rather too wide than too short. balanced: the mean of the classes' means, not
    of the images. missing: NaN are images that do not count for their column, whose mean is over those drawn that do;
    for columns in which a hundred do or more, as others may be drawn without any. kind: quantiles of the resampled
    means, or these corrected for bias and acceleration (BCa).
    Raises ValueError for fewer than two rows or classes, values that are not finite, and arguments out of range.
    Efron and Tibshirani 1993, chapters 13 and 14; Davison and Hinkley 1997, section 3.8, for two stages.
    """
    if missing and (balanced or kind == "bca"):
        raise ValueError("missing (=True) is neither for balanced means nor for BCa")
    values = _with_missing(scores) if missing else _finite("scores", scores, dimensions=(1, 2))
    columns = values.reshape(len(values), -1)
    _check_resampling(key, resamples, confidence)
    if kind not in ("percentile", "bca"):
        raise ValueError(f"kind (={kind!r}) must be 'percentile' or 'bca'")
    groups = _groups(len(values), classes, balanced)
    mean, resampled = _resample(columns, groups, key, resamples)
    levels = np.repeat(_levels(confidence)[:, None], len(mean), axis=1)
    if kind == "bca":
        levels = _bca_levels(levels, mean, resampled, _left_out(columns, groups))
    low, high = np.stack([np.quantile(*pair) for pair in zip(resampled.T, levels.T, strict=True)], axis=1)
    return Interval(*(of.reshape(values.shape[1:]) for of in (mean, low, high)))


def bootstrap_over_architectures(
    scores: ArrayLike,
    *,
    key: Array,
    resamples: int = 10_000,
    confidence: float = 0.95,
    classes: ArrayLike | None = None,
) -> Interval:
    """The percentile interval of the mean over images and architectures, both of which are drawn anew.

    scores: (n, architectures), such as the differences that DCLS makes to each. The rest is as for `paired_bootstrap`;
    the interval has no columns. With few architectures it is too short (of eight, Student's is three tenths wider), and
    it knows nothing of what another training run would give.
    Raises ValueError as `paired_bootstrap` does, and for fewer than two architectures.
    Owen 2007, "The pigeonhole bootstrap".
    """
    values = _finite("scores", scores, dimensions=(2,))
    architectures = values.shape[1]
    if architectures < 2:
        raise ValueError(f"scores must have two architectures or more, got shape {values.shape}")
    _check_resampling(key, resamples, confidence)
    of_images, of_architectures = jax.random.split(key)
    mean, resampled = _resample(values, _groups(len(values), classes), of_images, resamples)
    drawn = jax.random.randint(of_architectures, resampled.shape, 0, architectures)
    means = np.take_along_axis(resampled, np.asarray(drawn), axis=1).mean(1)
    return Interval(mean.mean(), *np.quantile(means, _levels(confidence)))


def wilcoxon(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Wilcoxon's signed-rank test of paired scores a and b (n,), two-sided: the statistic and its p-value.

    Differences of zero are ranked, and their ranks dropped (Pratt 1959); if there are no others the p-value is 1. It
    is that of `scipy.stats.wilcoxon(a, b, zero_method="pratt")`, exact for few images.
    Raises ValueError for scores of other shapes, fewer than two, and values that are not finite.
    """
    difference = _difference(a, b)
    if not difference.any():
        return 0.0, 1.0
    result = stats.wilcoxon(difference, zero_method="pratt")
    return float(result.statistic), float(result.pvalue)


def holm(p: ArrayLike) -> np.ndarray:
    """p-values (m,) of a family of tests, adjusted so that any error among them is as rare as the level says: (m,).

    Raises ValueError for values outside 0 .. 1. Holm 1979.
    """
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"p (={p}) must be one row of p-values between 0 and 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return adjusted


def rank_biserial(a: ArrayLike, b: ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation of paired scores a and b (n,), from -1 to 1 (no a is smaller than its b).

    Of the ranks that `wilcoxon` sums, the share where a is larger less the share where b is; 0 if all are equal.
    Raises ValueError as `wilcoxon` does. Kerby 2014, doi 10.2466/11.IT.3.1.
    """
    difference = _difference(a, b)
    ranks = stats.rankdata(abs(difference)) * (difference != 0)
    return float((ranks * np.sign(difference)).sum() / ranks.sum()) if ranks.any() else 0.0


def superiority(a: ArrayLike, b: ArrayLike) -> float:
    """Probability of superiority, P(a > b) + P(a = b) / 2, over paired scores a and b (n,).

    Raises ValueError as `wilcoxon` does. Grissom and Kim 2012.
    """
    return float((np.sign(_difference(a, b)).mean() + 1) / 2)


def zero_share(a: ArrayLike, b: ArrayLike) -> float:
    """The share of paired scores a and b (n,) that are equal, of which `wilcoxon` learns nothing.

    Raises ValueError as `wilcoxon` does.
    """
    return float((_difference(a, b) == 0).mean())


def equivalence(a: ArrayLike, b: ArrayLike, *, margin: float) -> float:
    """The p-value of equivalence: that the mean difference of paired scores a and b (n,) is within -margin .. margin.

    Two one-sided t-tests (TOST), of which the larger p-value counts; `Interval.within` is the same by the bootstrap.
    Raises ValueError as `wilcoxon` does, and for a margin that is not positive. Schuirmann 1987.
    """
    difference = _difference(a, b)
    _check_margin(margin)
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return float(special.stdtr(len(difference) - 1, (abs(mean) - margin) / error))


def sign_test(wins: int, n: int) -> float:
    """The two-sided p-value of so many wins or more, or as few, in n fair comparisons without ties.

    7 of 8 has 0.07. Equals `scipy.stats.binomtest(wins, n).pvalue`. Raises ValueError unless 0 <= wins <= n, n >= 1.
    """
    if not (n >= 1 and 0 <= wins <= n):
        raise ValueError(f"wins (={wins}) must be between 0 and n (={n}), and n at least 1")
    return float(stats.binomtest(wins, n).pvalue)


class _Groups(NamedTuple):
    """Rows in the order of their classes; of each class its first row there, its size and the weight of each row."""

    order: np.ndarray
    first: np.ndarray
    size: np.ndarray
    weight: np.ndarray


def _groups(n: int, classes: ArrayLike | None, balanced: bool = False) -> _Groups:
    """All rows are one class unless there are classes: then to draw classes first changes nothing."""
    if balanced and classes is None:
        raise ValueError("balanced (=True) needs classes")
    labels = np.zeros(n, int) if classes is None else np.asarray(classes)
    if labels.shape != (n,):
        raise ValueError(f"classes must be a label for each of {n} rows, got shape {labels.shape}")
    _, of_rows, size = np.unique(labels, return_inverse=True, return_counts=True)
    if classes is not None and len(size) < 2:
        raise ValueError(f"classes must be two or more, got {len(size)}")
    weight = 1 / size if balanced else np.ones(len(size))
    return _Groups(np.argsort(of_rows, kind="stable"), np.cumsum(size) - size, size, weight)


def _resample(values: np.ndarray, groups: _Groups, key: Array, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (columns,) of values (n, columns), NaN left out, and those of each resample (resamples, columns)."""
    ordered, weights = values[groups.order], np.repeat(groups.weight, groups.size)
    counts = np.isfinite(ordered)
    ordered = np.where(counts, ordered, 0)
    mean = np.average(ordered, axis=0, weights=weights) / np.average(counts, axis=0, weights=weights)
    # Deviations, so that float32 rounds what differs, not what is common.
    deviations = _resampled_means(
        jnp.asarray(np.where(counts, ordered - mean, 0), jnp.float32),
        None if counts.all() else jnp.asarray(counts, jnp.float32),
        key,
        jnp.asarray(groups.first),
        jnp.asarray(groups.size),
        jnp.asarray(groups.weight, jnp.float32),
        resamples=resamples,
        widest=int(groups.size.max()),
    )
    return mean, mean + np.asarray(deviations, np.float64)


@partial(jax.jit, static_argnames=("resamples", "widest"))
def _resampled_means(
    values: Array,
    counting: Array | None,
    key: Array,
    first: Array,
    size: Array,
    weight: Array,
    *,
    resamples: int,
    widest: int,
) -> Array:
    def counts(key: Array) -> Array:
        """How often each row is drawn, times its weight: (n,)."""
        of_classes, of_rows = jax.random.split(key)
        drawn = jax.random.randint(of_classes, size.shape, 0, len(size))
        place = jax.random.randint(of_rows, (len(size), widest), 0, size[drawn][:, None])
        exists = jnp.arange(widest) < size[drawn][:, None]
        rows = jnp.where(exists, first[drawn][:, None] + place, len(values))
        shares = jnp.broadcast_to(weight[drawn][:, None], rows.shape)
        return jnp.zeros(len(values), values.dtype).at[rows].add(shares, mode="drop")

    def means(i: Array) -> Array:
        of = counts(jax.random.fold_in(key, i))
        total = of.sum() if counting is None else jnp.matmul(of, counting, precision=lax.Precision.HIGHEST)
        return jnp.matmul(of, values, precision=lax.Precision.HIGHEST) / total

    together = max(1, _DRAWS_AT_ONCE // (len(size) * widest))
    return lax.map(means, jnp.arange(resamples), batch_size=min(together, resamples))


def _levels(confidence: float) -> np.ndarray:
    return (1 + np.array([-confidence, confidence])) / 2


def _left_out(values: np.ndarray, groups: _Groups) -> np.ndarray:
    """Means of all rows but one, or of all classes but one: (rows or classes, columns)."""
    weights = np.repeat(groups.weight, groups.size)[:, None]
    sums, totals = weights * values[groups.order], weights
    if len(groups.size) > 1:
        sums, totals = (np.add.reduceat(of, groups.first) for of in (sums, totals))
    return (sums.sum(0) - sums) / (totals.sum(0) - totals)


def _bca_levels(levels: np.ndarray, mean: np.ndarray, resampled: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Levels (2, columns) of quantiles, corrected: Efron and Tibshirani 1993, equations 14.10, 14.14 and 14.15."""
    below = ((resampled < mean).mean(0) + (resampled <= mean).mean(0)) / 2
    bias = special.ndtri(np.clip(below, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
    influence = left_out.mean(0) - left_out
    spread = (influence**2).sum(0) ** 1.5
    acceleration = (influence**3).sum(0) / (6 * np.where(spread > 0, spread, 1))
    normal = bias + special.ndtri(levels)
    corrected: np.ndarray = special.ndtr(bias + normal / (1 - acceleration * normal))
    return corrected


def _finite(name: str, values: ArrayLike, *, dimensions: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim not in dimensions or len(array) < 2:
        shapes = " or ".join(("(n,)", "(n, columns)")[of - 1] for of in dimensions)
        raise ValueError(f"{name} must have the shape {shapes} with two rows or more, got {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise ValueError(
            f"{name} must be finite, but {(~np.isfinite(array)).sum()} are not, the first in row {row}: "
            "compare on the images that count for all"
        )
    return array


def _with_missing(scores: ArrayLike) -> np.ndarray:
    array = np.asarray(scores, np.float64)
    _finite("scores", np.where(np.isnan(array), 0, array), dimensions=(1, 2))
    if (fewest := int(np.isfinite(array).sum(0).min())) < LEAST_WITH_MISSING:
        raise ValueError(f"scores with missing ones must have {LEAST_WITH_MISSING} in each column, got {fewest}")
    return array


def _difference(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    first, second = _finite("a", a, dimensions=(1,)), _finite("b", b, dimensions=(1,))
    if first.shape != second.shape:
        raise ValueError(f"a and b must be scores of the same images, got shapes {first.shape} and {second.shape}")
    return first - second


def _check_margin(margin: float) -> None:
    if not 0 < margin < np.inf:
        raise ValueError(f"margin (={margin}) must be positive and finite")


def _check_resampling(key: Array, resamples: int, confidence: float) -> None:
    if not isinstance(key, jax.Array):
        raise ValueError(f"key (={key!r}) must be a key of JAX, such as jax.random.key(0)")
    if resamples < 1:
        raise ValueError(f"resamples (={resamples}) must be at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence (={confidence}) must be between 0 and 1")

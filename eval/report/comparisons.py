"""What is said of results side by side, all of it by `statistics`: intervals, DCLS against standard, architectures.

Two results are compared on the records that count for both. Resampled records are the same for all columns with the
same records.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dcls_jax.eval import statistics
from dcls_jax.eval.report.collection import Row
from dcls_jax.eval.report.grouping import Table
from dcls_jax.eval.report.measures import Measure, average, measure_of, records_of

CONFIDENCE = 0.95
SEED = 0
RESAMPLES = 10_000
Key = tuple[str | int, ...]  # what a column is, a result's number, and the name of a value


class Bounds(NamedTuple):
    """A mean, and the bounds of its interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """Which side of zero all of the interval is on, 1 or -1; 0 where it holds zero."""
        return int(self.low > 0) - int(self.high < 0)


class Column(NamedTuple):
    """Scores of records (n,), NaN where one does not count; with classes (n,) where the classes' means are averaged."""

    scores: np.ndarray
    classes: np.ndarray | None = None


class Comparison(NamedTuple):
    """DCLS minus standard, of one value, architecture and method, on the `n` records that count for both.

    standard, dcls: the means over those. effect: matched-pairs rank-biserial correlation. superiority: the probability
    that DCLS has the larger score. equal: the share of equal scores. p: Wilcoxon's, holm: among all comparisons of this
    value in the table. equivalent: the p-value that the difference is within the value's margin, if it has one.
    """

    value: str
    pair: tuple[Row, Row]
    n: int
    standard: float
    dcls: float
    difference: Bounds
    p: float
    holm: float
    effect: float
    superiority: float
    equal: float
    equivalent: float | None

    @property
    def measure(self) -> Measure:
        """What is known of the value."""
        return measure_of(self.value)

    @property
    def architecture(self) -> str:
        """The model's name without DCLS."""
        return self.pair[0].result.name

    @property
    def method(self) -> str:
        """The method, and whatever else tells this pair from others of the table."""
        labels = self.pair[0].result.labels
        return ", ".join(labels[name] for name in ("method", "random") if name in labels)

    @property
    def verdict(self) -> int:
        """1 where DCLS is better beyond the interval, -1 where it is worse, 0 where the interval holds both."""
        return self.difference.sign * self.measure.better


class Claim(NamedTuple):
    """Over `architectures`, by one method: in how many DCLS is better, and the sign test of that, without ties.

    difference: the mean over architectures, with records and architectures drawn anew, on the `n` records that count
    for all; None where fewer than two do, of values that are not shown, and for a mean of classes' means.
    """

    value: str
    method: str
    architectures: int
    better: int
    untied: int
    p: float
    n: int
    difference: Bounds | None

    @property
    def verdict(self) -> int:
        """As of a comparison."""
        return 0 if self.difference is None else self.difference.sign * measure_of(self.value).better


def resampled(columns: Mapping[Key, Column], *, resamples: int = RESAMPLES) -> dict[Key, Bounds]:
    """The interval of the mean of each column, over its records that are not NaN; none where fewer than two are.

    Columns of the same length are resampled together; but those of few records, and means of classes' means, with
    those alone that have the same records.
    """
    together: dict[tuple[Any, ...], list[Key]] = {}
    for key, column in columns.items():
        together.setdefault(_whom_with(column), []).append(key)
    found: dict[Key, Bounds] = {}
    for (joint, *_), keys in together.items():
        scores, classes = np.stack([columns[key].scores for key in keys], 1), columns[keys[0]].classes
        if not joint:
            counts = np.isfinite(scores[:, 0])
            scores, classes = scores[counts], None if classes is None else classes[counts]
        if len(scores) < 2 or (classes is not None and len(np.unique(classes)) < 2):
            continue
        bounds = statistics.paired_bootstrap(
            scores,
            key=jax.random.key(SEED),
            resamples=resamples,
            confidence=CONFIDENCE,
            classes=classes,
            balanced=classes is not None,
            missing=joint,
        )
        found |= {key: Bounds(*(float(bound[number]) for bound in bounds)) for number, key in enumerate(keys)}
    return found


def _whom_with(column: Column) -> tuple[Any, ...]:
    """What columns that are resampled together have in common; first whether they may be of different records."""
    counts = np.isfinite(column.scores)
    if column.classes is None and counts.sum() >= statistics.LEAST_WITH_MISSING:
        return True, len(counts)
    return False, counts.tobytes(), b"" if column.classes is None else column.classes.tobytes()


def cells(table: Table) -> dict[Key, Column]:
    """A column for each value that is a mean over records, ("cell", row, value): all records that count for it."""
    return {
        ("cell", row.number, name): _column(scores, row, name)
        for row in table.rows
        for name in row.result.values
        if (scores := records_of(row.result, name)) is not None
    }


def differences(table: Table) -> dict[Key, Column]:
    """A column for each value and pair, ("difference", row with DCLS, value): DCLS minus standard, where both count."""
    return {
        ("difference", pair[1].number, name): _column(scores, pair[1], name)
        for name in table.compared
        for pair in table.pairs()
        if (scores := _differences(pair, name)) is not None
    }


def _column(scores: np.ndarray, row: Row, name: str) -> Column:
    return Column(scores, row.result.classes if measure_of(name).balanced else None)


def _differences(pair: tuple[Row, Row], name: str) -> np.ndarray | None:
    standard, dcls = (records_of(row.result, name) for row in pair)
    return None if standard is None or dcls is None else dcls - standard


def compare(table: Table, found: Mapping[Key, Bounds]) -> list[Comparison]:
    """Comparisons of all values of which more or less is better, with the intervals of `differences`, by value."""
    compared = []
    for name in table.compared:
        pairs = [pair for pair in table.pairs() if ("difference", pair[1].number, name) in found]
        family = [_comparison(name, pair, found["difference", pair[1].number, name]) for pair in pairs]
        holm = statistics.holm(np.array([it.p for it in family]))
        compared += [it._replace(holm=float(p)) for it, p in zip(family, holm, strict=True)]
    return compared


def uncompared(table: Table, compared: Sequence[Comparison]) -> list[str]:
    """A line for each pair and value that is not compared, as fewer than two records count for both."""
    done = {(it.value, it.pair[1].number) for it in compared}
    return [
        f"{dcls.result.name} and {plain.result.name}, {name}: fewer than two records count for both"
        for name in table.compared
        for plain, dcls in table.pairs()
        if name in dcls.result.values and (name, dcls.number) not in done
    ]


def _comparison(name: str, pair: tuple[Row, Row], of: Bounds) -> Comparison:
    measure = measure_of(name)
    both = [records_of(row.result, name) for row in pair]
    assert both[0] is not None  # they have an interval
    assert both[1] is not None
    common = np.isfinite(both[0]) & np.isfinite(both[1])
    standard, dcls = both[0][common], both[1][common]
    p = statistics.wilcoxon(dcls, standard)[1]
    return Comparison(
        value=name,
        pair=pair,
        n=len(dcls),
        standard=average(standard, pair[0].result.classes[common], measure),
        dcls=average(dcls, pair[1].result.classes[common], measure),
        difference=of,
        p=p,
        holm=p,
        effect=statistics.rank_biserial(dcls, standard),
        superiority=statistics.superiority(dcls, standard),
        equal=statistics.zero_share(dcls, standard),
        equivalent=statistics.equivalence(dcls, standard, margin=measure.margin) if measure.margin else None,
    )


def claims(compared: Sequence[Comparison], shown: str | None, *, resamples: int = RESAMPLES) -> list[Claim]:
    """What the comparisons of a table say over architectures, for each value and method with two or more of them.

    shown: the value of which the mean over architectures has an interval.
    """
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for it in compared:
        groups.setdefault((it.value, it.method), []).append(it)
    return [_claim(group, shown, resamples) for group in groups.values() if len(group) > 1]


def _claim(group: Sequence[Comparison], shown: str | None, resamples: int) -> Claim:
    value, better = group[0].value, group[0].measure.better
    signs = [int(np.sign(it.difference.mean)) * better for it in group]
    wins, untied = signs.count(1), len(signs) - signs.count(0)
    columns = np.stack([of for it in group if (of := _differences(it.pair, value)) is not None], 1)
    common = columns[np.isfinite(columns).all(1)]
    interval = None
    if len(common) > 1 and value == shown and not measure_of(value).balanced:
        key = jax.random.key(SEED)
        over = statistics.bootstrap_over_architectures(common, key=key, resamples=resamples, confidence=CONFIDENCE)
        interval = Bounds(*map(float, over))
    p = statistics.sign_test(wins, untied) if untied else 1.0
    return Claim(value, group[0].method, len(group), wins, untied, p, len(common), interval)

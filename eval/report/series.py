"""What figures show of a table: curves with bands, how scores are spread, two methods, and presets' rankings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from dcls_jax.eval.faithfulness import FLIPPING_PRESETS, ROAD_PRESETS, fractions
from dcls_jax.eval.report.collection import Row
from dcls_jax.eval.report.comparisons import Bounds, Column, Key
from dcls_jax.eval.report.grouping import DCLS, Table, same_records
from dcls_jax.eval.report.measures import measure_of, records_of
from dcls_jax.eval.status import Status

BINS = 40
POINTS = 600  # of a scatter plot; more are counted in cells
CELLS = 24
_CURVE = "_curve"  # what the name of a curve's scores ends in
_ROAD = {"road": "official"}  # the preset of a run, where ROAD's has another name


class Curve(NamedTuple):
    """The mean of one result's curves, and the band of its interval, at the points x."""

    row: Row
    n: int
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Spread(NamedTuple):
    """How the scores of a result are spread: counts in bins between the ends, quantiles at 5, 25, 50, 75 and 95 %."""

    row: Row
    n: int
    ends: tuple[float, float]
    counts: np.ndarray
    quantiles: np.ndarray


class Scatter(NamedTuple):
    """Scores of two methods on the `n` records that count for both, (n,) each, and their rank correlation.

    cells: counts (CELLS, CELLS) between the ends instead of points, where there are more than POINTS.
    """

    value: str
    rows: tuple[Row, Row]
    n: int
    correlation: float
    ends: tuple[float, float]
    records: np.ndarray
    points: tuple[np.ndarray, np.ndarray]
    cells: np.ndarray | None


class Agreement(NamedTuple):
    """How alike presets rank the same models and methods by one value, on the `n` records that count everywhere."""

    value: str
    titles: list[str]
    ranked: int
    n: int
    correlations: np.ndarray


def curve_columns(table: Table) -> dict[Key, Column]:
    """A column for each point of each curve, ("curve", row, name of the curve, point)."""
    return {
        ("curve", row.number, name, point): Column(_counted(row, column))
        for row in table.rows
        for name, scores in row.result.scores.items()
        if name.endswith(_CURVE) and scores.ndim == 2
        for point, column in enumerate(scores.T)
    }


def _counted(row: Row, column: np.ndarray) -> np.ndarray:
    return np.where(row.result.status == Status.COUNTED.code, column.astype(np.float64), np.nan)


def curves(table: Table, found: Mapping[Key, Bounds]) -> dict[str, list[Curve]]:
    """Those of a table by name: deletion, insertion, morf and lerf."""
    lines: dict[str, list[Curve]] = {}
    for row in table.rows:
        for name, scores in row.result.scores.items():
            keys = [("curve", row.number, name, point) for point in range(scores.shape[-1] if scores.ndim == 2 else 0)]
            if name.endswith(_CURVE) and keys and keys[0] in found:
                mean, low, high = np.array([found[key] for key in keys]).T
                line = Curve(row, row.result.counted, _along(row, len(keys)), mean, low, high)
                lines.setdefault(name.removesuffix(_CURVE), []).append(line)
    return lines


def _along(row: Row, points: int) -> np.ndarray:
    """The share of pixels that are changed at each point of a curve; where it is not known, the points' numbers."""
    preset = row.result.labels.get("preset", "")
    crop = row.of.run["arguments"]["transform"]["crop"]
    if preset in FLIPPING_PRESETS:
        shares = fractions((crop, crop), preset=preset)
    elif (road := _ROAD.get(preset, preset)) in ROAD_PRESETS:
        shares = np.array(ROAD_PRESETS[road].percentages)
    else:
        shares = np.arange(points)
    return np.asarray(shares if len(shares) == points else np.arange(points), np.float64)


def spreads(table: Table, name: str) -> list[Spread]:
    """Of a value's scores in a table, all in the same bins; none of scores that are 0 or 1."""
    scores = [(row, of[np.isfinite(of)]) for row in table.rows if (of := records_of(row.result, name)) is not None]
    having = [(row, of) for row, of in scores if len(of)]
    everything = np.concatenate([np.empty(0), *(of for _, of in having)])
    if not len(everything) or _few(everything):
        return []
    ends = float(everything.min()), float(everything.max())
    levels = 0.05, 0.25, 0.5, 0.75, 0.95
    return [Spread(row, len(of), ends, np.histogram(of, BINS, ends)[0], np.quantile(of, levels)) for row, of in having]


def _few(values: np.ndarray) -> bool:
    return len(np.unique(values[:10_000])) < 3


def scatters(table: Table, name: str) -> list[Scatter]:
    """Each further method of a table against the first, model by model."""
    found = []
    for model in dict.fromkeys(row.result.name for row in table.rows):
        first, *others = (row for row in table.rows if row.result.name == model)
        found += [plot for other in others if (plot := _scatter(name, first, other))]
    return found


def _scatter(name: str, a: Row, b: Row) -> Scatter | None:
    x, y = records_of(a.result, name), records_of(b.result, name)
    if x is None or y is None or "method" not in a.result.labels or not same_records(a, b):
        return None
    others = [{k: v for k, v in row.result.labels.items() if k != "method"} for row in (a, b)]
    both = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if others[0] != others[1] or len(both) < 2 or _few(np.concatenate([x[both], y[both]])):
        return None
    points = x[both], y[both]
    ends = min(map(np.min, points)), max(map(np.max, points))
    cells = np.histogram2d(*points, CELLS, (ends, ends))[0] if len(both) > POINTS else None
    return Scatter(
        name, (a, b), len(both), _rank_correlation(*points), (float(ends[0]), float(ends[1])), both, points, cells
    )


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where one is constant."""
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def agreements(found: Sequence[Table]) -> list[Agreement]:
    """For each value that several presets of a metric have on the same records, of three models and methods or more."""
    groups: dict[tuple[str, str, str], list[Table]] = {}
    for table in found:
        for name in table.compared:
            groups.setdefault((table.rows[0].result.title, table.rows[0].data, name), []).append(table)
    of_all = (_agreement(key[2], of) for key, of in groups.items() if len(of) > 1)
    return [it for it in of_all if it is not None]


def _agreement(name: str, of: Sequence[Table]) -> Agreement | None:
    scores = [{_who(row): records_of(row.result, name) for row in table.rows} for table in of]
    shared = [who for who in scores[0] if all(table.get(who) is not None for table in scores)]
    if len(shared) < 3:
        return None
    values = np.array([[table[who] for who in shared] for table in scores], np.float64)  # (presets, shared, n)
    common = np.isfinite(values).all((0, 1))
    if not common.any():
        return None
    means = values[:, :, common].mean(-1)
    correlations = np.array([[_rank_correlation(a, b) for b in means] for a in means])
    return Agreement(name, [table.title for table in of], len(shared), int(common.sum()), correlations)


def _who(row: Row) -> tuple[str, ...]:
    return (row.result.name, *(of for name, of in sorted(row.result.labels.items()) if name in ("method", "random")))


def headline(table: Table) -> str | None:
    """The value of a table that its figures show: the first of which more, or less, is better."""
    return next((name for name in table.compared if measure_of(name).better), None)


def architectures(rows: Sequence[Row]) -> list[str]:
    """Models without what says that they have DCLS, each once."""
    return list(dict.fromkeys(row.result.name.removesuffix(DCLS) for row in rows))

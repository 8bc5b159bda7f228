"""What is known of the values that results have: what is better, and which scores of single records they come from."""

from typing import NamedTuple

import numpy as np

from dcls_jax.eval.clickme import HUMAN_CEILING
from dcls_jax.eval.metric import Result, mean
from dcls_jax.eval.status import Status

MARGIN = 0.01  # of alignment: a smaller difference is none
_ROUNDING = 1e-5  # between a value of a summary and the mean of the scores in the parts


class Measure(NamedTuple):
    """A value. better: 1 where higher is better, -1 where lower is, 0 where neither is.

    It is `scale` times the mean of the records' score of that name, its own unless given; balanced: the mean of the
    classes' means. margin: differences within it are none.
    """

    better: int = 0
    score: str = ""
    scale: float = 1
    balanced: bool = False
    margin: float | None = None

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {1: "↑", -1: "↓", 0: ""}[self.better]

    @property
    def words(self) -> str:
        """The same in words."""
        return {1: "higher is better", -1: "lower is better", 0: "neither is better"}[self.better]


_HIGHER = (
    *("insertion", "relevance_gain", "gain", "increase", "adcc", "coherency", "lerf"),
    *("hit", "energy", "iou", "best_iou", "box_accuracy", "hit_all_classes", "entropy_rise"),
)
_HIGHER_BY_NUMBER = "iou_", "top_"  # what such a value's name begins with
# The similarity to maps of random models is of a method that depends on what was learned when it is low.
_LOWER = "deletion", "drop", "morf", "infidelity", "max_sensitivity", "spearman", "spearman_abs", "ssim", "hog"
MEASURES: dict[str, Measure] = {
    **{name: Measure(1) for name in _HIGHER},
    **{name: Measure(-1) for name in _LOWER},
    "alignment": Measure(1, "spearman", 1 / HUMAN_CEILING, margin=MARGIN),
    "mean_spearman": Measure(1, "spearman"),
    "hit_seen_classes": Measure(1, "hit", balanced=True),
}


def measure_of(name: str) -> Measure:
    """What is known of a value; of one that is not known, that neither more nor less of it is better."""
    known = MEASURES.get(name, Measure(1) if name.startswith(_HIGHER_BY_NUMBER) else Measure())
    return known._replace(score=known.score or name)


def records_of(result: Result, name: str) -> np.ndarray | None:
    """The scores of single records (n,), scaled, NaN where one does not count, that a result's value is the mean of.

    None where it is no such mean: no interval can be given by resampling records, and no pairs be compared.
    """
    measure = measure_of(name)
    scores = result.scores.get(measure.score)
    if scores is None or scores.ndim != 1 or name not in result.values:
        return None
    scaled = np.where(result.status == Status.COUNTED.code, scores.astype(np.float64) * measure.scale, np.nan)
    counted = np.isfinite(scaled)
    value = average(scaled[counted], result.classes[counted], measure)
    agrees = np.isclose(value, result.values[name], rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)
    return scaled if agrees else None


def average(scores: np.ndarray, classes: np.ndarray, measure: Measure) -> float:
    """What a value is of scores (n,) with classes (n,): their mean, or the mean of the classes' means."""
    if not measure.balanced:
        return mean(scores)
    return mean(np.array([scores[classes == label].mean() for label in np.unique(classes)]))

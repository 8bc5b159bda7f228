"""How well maps agree with human attention: data, metrics, the resumable loop, reports, the command line."""

from dcls_jax.eval import clickme
from dcls_jax.eval.rank import average_ranks, spearman
from dcls_jax.eval.records import RecordError
from dcls_jax.eval.results import ResultsError

__all__ = ["RecordError", "ResultsError", "average_ranks", "clickme", "spearman"]

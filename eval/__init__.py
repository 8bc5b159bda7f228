"""How well maps agree with human attention: data, metrics, the resumable loop, reports, the command line."""

from etils import epy

with epy.lazy_api_imports(globals()):  # a rank correlation needs no reader of records
    from dcls_jax.eval import accuracy, clickme, faithfulness, localisation, sanity, statistics
    from dcls_jax.eval.data.records import RecordError, write_records
    from dcls_jax.eval.metric import Settings
    from dcls_jax.eval.rank import average_ranks, spearman
    from dcls_jax.eval.results import ResultsError

__all__ = [
    "RecordError",
    "ResultsError",
    "Settings",
    "accuracy",
    "average_ranks",
    "clickme",
    "faithfulness",
    "localisation",
    "sanity",
    "spearman",
    "statistics",
    "write_records",
]

"""Results side by side: those of one metric, by one preset, on the same data are a table."""

from collections.abc import Sequence
from typing import NamedTuple

from dcls_jax.eval.report.collection import Row
from dcls_jax.eval.report.measures import measure_of, records_of
from dcls_jax.eval.report.tables import labels_of, shared_labels

DCLS = "_dcls"  # what the name of a model with DCLS ends in
_OF_ROWS = "method", "random", "transform"  # labels that tell rows of a table apart, not tables
_FIRST = "ClickMe human alignment", "Localisation", "Faithfulness", "Accuracy"


class Table(NamedTuple):
    """Results that may be held against each other. number: by which the page refers to it."""

    number: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """What was measured, and by which preset in full: what all rows share."""
        results = [row.result for row in self.rows]
        shared = {name: of for name, of in shared_labels(results).items() if name != "model"}
        return ", ".join([results[0].title, *map(" ".join, shared.items())])

    @property
    def told_by(self) -> list[str]:
        """The labels that tell its rows apart, the model first."""
        results = [row.result for row in self.rows]
        names = dict.fromkeys(name for result in results for name in labels_of(result))
        return [n for n in names if n == "model" or len({labels_of(result).get(n) for result in results}) > 1]

    @property
    def values(self) -> list[str]:
        """The names of all values of its rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row.result.values))

    @property
    def compared(self) -> list[str]:
        """The values of which more, or less, is better, and which records have."""
        return [
            name
            for name in self.values
            if measure_of(name).better and all(records_of(row.result, name) is not None for row in self._having(name))
        ]

    def _having(self, name: str) -> list[Row]:
        return [row for row in self.rows if name in row.result.values]

    def pairs(self) -> list[tuple[Row, Row]]:
        """Each result of a model with DCLS, and before it that of the same model without, on the same records."""
        named = {(row.result.name, *sorted(row.result.labels.items())): row for row in self.rows}
        found = []
        for row in self.rows:
            plain = row.result.name.removesuffix(DCLS)
            other = named.get((plain, *sorted(row.result.labels.items())))
            if plain != row.result.name and other is not None and same_records(row, other):
                found.append((other, row))
        return found


def same_records(a: Row, b: Row) -> bool:
    """Whether two results are of the same records in the same order, as far as their folders tell."""
    classes = a.result.classes, b.result.classes
    return a.data == b.data and classes[0].shape == classes[1].shape and bool((classes[0] == classes[1]).all())


def tables(rows: Sequence[Row]) -> list[Table]:
    """All tables: human alignment first, by title then."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        labels = sorted((name, of) for name, of in row.result.labels.items() if name not in _OF_ROWS)
        groups.setdefault((row.result.title, *map(" ".join, labels), row.data), []).append(row)
    ordered = sorted(groups.values(), key=lambda group: _place(group[0].result.title))
    return [Table(number, tuple(sorted(group, key=_in_table))) for number, group in enumerate(ordered)]


def _place(title: str) -> tuple[int, str]:
    return (_FIRST.index(title) if title in _FIRST else len(_FIRST), title)


def _in_table(row: Row) -> tuple[str, str]:
    """By method, then by architecture, without DCLS first; results of one such stay in their order."""
    return row.result.labels.get("method", ""), row.result.name

"""Two collections of the same evaluations side by side, of another version or machine say: what moved between them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dcls_jax.eval.report.collection import Collection, Row
from dcls_jax.eval.report.comparisons import RESAMPLES, Bounds, Column, Key, resampled
from dcls_jax.eval.report.grouping import same_records
from dcls_jax.eval.report.measures import measure_of, records_of

# Other devices, batch sizes or versions round otherwise: what differs by less did not move.
ROUNDING = 1e-5


class Move(NamedTuple):
    """A value in both. difference: b minus a with its interval, if it has one.

    how: "paired", over the n records that count for both; "not paired", where the records are others, and `a` and `b`
    are beyond each other's intervals or are not; "no interval", where the value is no mean over records.
    """

    rows: tuple[Row, Row]
    value: str
    a: float
    b: float
    n: int
    difference: Bounds | None
    how: str
    moved: bool


class Moves(NamedTuple):
    """All values that both have, and a line for each result that one alone has."""

    values: Sequence[Move]
    alone: Sequence[str]


def moves(a: Collection, b: Collection, *, resamples: int = RESAMPLES) -> Moves:
    """What moved from a to b: beyond its interval, and by more than rounding."""
    pairs = [(row, other) for row in a.rows if (other := _same(row, b)) is not None]
    columns: dict[Key, Column] = {}
    for number, pair in enumerate(pairs):
        for name in _shared(pair):
            columns |= _columns(number, pair, name)
    found = resampled(columns, resamples=resamples)
    values = [_move(number, pair, name, found) for number, pair in enumerate(pairs) for name in _shared(pair)]
    in_pairs = {id(row) for pair in pairs for row in pair}
    alone = [f"{row.of.folder}: {what(row)}" for row in (*a.rows, *b.rows) if id(row) not in in_pairs]
    return Moves(values, alone)


def what(row: Row) -> str:
    """What a result is of."""
    return ", ".join([row.result.title, row.result.name, *map(" ".join, row.result.labels.items())])


def _same(row: Row, there: Collection) -> Row | None:
    """The result of the same evaluation of the same model: on the same data if there is one, else the only one."""
    named = [it for it in there.rows if what(it) == what(row)]
    return next((it for it in named if it.data == row.data), named[0] if len(named) == 1 else None)


def _shared(pair: tuple[Row, Row]) -> list[str]:
    return [name for name in pair[0].result.values if name in pair[1].result.values]


def _columns(number: int, pair: tuple[Row, Row], name: str) -> dict[Key, Column]:
    before, after = (records_of(row.result, name) for row in pair)
    if before is None or after is None:
        return {}
    classes = [row.result.classes if measure_of(name).balanced else None for row in pair]
    if same_records(*pair):
        return {(number, name): Column(after - before, classes[0])}
    return {(number, name, 0): Column(before, classes[0]), (number, name, 1): Column(after, classes[1])}


def _move(number: int, pair: tuple[Row, Row], name: str, found: Mapping[Key, Bounds]) -> Move:
    a, b = (row.result.values[name] for row in pair)
    differs = not (abs(b - a) <= ROUNDING or (np.isnan(a) and np.isnan(b)))
    if (difference := found.get((number, name))) is not None:
        moved = difference.sign != 0 and abs(difference.mean) > ROUNDING
        return Move(pair, name, a, b, _common(pair, name), difference, "paired", moved)
    sides = [found.get((number, name, side)) for side in (0, 1)]
    if sides[0] is not None and sides[1] is not None:
        apart = sides[0].high < sides[1].low or sides[1].high < sides[0].low
        counted = min(row.result.counted for row in pair)
        return Move(pair, name, a, b, counted, None, "not paired", apart and differs)
    return Move(pair, name, a, b, min(row.result.counted for row in pair), None, "no interval", differs)


def _common(pair: tuple[Row, Row], name: str) -> int:
    scores = [records_of(row.result, name) for row in pair]
    return int(np.isfinite(np.stack([of for of in scores if of is not None])).all(0).sum())

"""All that a report says of a collection of results, in numbers and in words: the page only sets it out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.demo import SAMPLE
from dcls_jax.eval.report import comparisons, series
from dcls_jax.eval.report.collection import Collection, Row, is_of
from dcls_jax.eval.report.comparisons import Bounds, Claim, Comparison, Key
from dcls_jax.eval.report.grouping import Table, tables
from dcls_jax.eval.report.measures import measure_of, records_of
from dcls_jax.eval.report.series import Agreement, Curve, Scatter, Spread

_SCATTERS = 24  # in a page, so that it stays small
DRAWN = "the built-in, drawn sample"


class Section(NamedTuple):
    """What is said of a table. shown: the value that its figures are of, if it has one."""

    table: Table
    intervals: Mapping[Key, Bounds]
    compared: Sequence[Comparison]
    uncompared: Sequence[str]
    claims: Sequence[Claim]
    curves: Mapping[str, Sequence[Curve]]
    shown: str | None
    spreads: Sequence[Spread]
    scatters: Sequence[Scatter]


class Analysis(NamedTuple):
    """What is said of a collection. sample: whether all, some or none of it is of the sample that is drawn."""

    collection: Collection
    sections: Sequence[Section]
    agreements: Sequence[Agreement]
    sample: str
    answer: str
    resamples: int

    @property
    def forest(self) -> Sequence[Section]:
        """Those that the answer is of, by each preset: the first metric that compares anything."""
        first = next((it for it in self.sections if it.compared and it.shown), None)
        return [] if first is None else [it for it in self.sections if it.compared and _alike(it, first)]


def _alike(a: Section, b: Section) -> bool:
    return a.table.rows[0].result.title == b.table.rows[0].result.title and a.shown == b.shown


def analyse(collection: Collection, *, resamples: int = comparisons.RESAMPLES) -> Analysis:
    """Intervals, comparisons, claims and all else.

    On two cores a minute for each set of 50,000 records that count: results with the same such set share it.
    """
    found = tables(collection.rows)
    columns = {
        key: column
        for table in found
        for of in (comparisons.cells, comparisons.differences, series.curve_columns)
        for key, column in of(table).items()
    }
    intervals = comparisons.resampled(columns, resamples=resamples)
    sections = [_section(table, intervals, resamples) for table in found]
    return Analysis(
        collection, sections, series.agreements(found), sampled(collection.rows), answer(sections), resamples
    )


def _section(table: Table, intervals: Mapping[Key, Bounds], resamples: int) -> Section:
    compared = comparisons.compare(table, intervals)
    shown = next(iter(table.compared), None)
    return Section(
        table=table,
        intervals=intervals,
        compared=compared,
        uncompared=comparisons.uncompared(table, compared),
        claims=comparisons.claims(compared, resamples=resamples),
        curves=series.curves(table, intervals),
        shown=shown,
        spreads=series.spreads(table, shown) if shown else (),
        scatters=series.scatters(table, shown)[:_SCATTERS] if shown else (),
    )


def sampled(rows: Sequence[Row]) -> str:
    """Whether "all", "some" or "none" of the results are of the sample; lists in memory do not say what they hold."""
    sample = ClickMe(SAMPLE).identity()
    runs = [row.of.run for row in rows]
    known = [is_of(run, sample) for run in runs if not _in_memory(run.get("data"))]
    return "none" if not any(known) else "all" if all(known) else "some"


def _in_memory(data: Any) -> bool:
    return isinstance(data, dict) and ("samples" in data or any(map(_in_memory, data.values())))


def answer(sections: Sequence[Section]) -> str:
    """What the first metric says, in two sentences with numbers."""
    section = next((it for it in sections if it.compared and it.shown), None)
    if section is None or section.shown is None:
        return _of_best(sections)
    compared = [it for it in section.compared if it.value == section.shown]
    claims = [it for it in section.claims if it.value == section.shown]
    counts = sorted({it.n for it in compared})
    on = f"On {counts[0]} records" if len(counts) == 1 else f"On {counts[0]} to {counts[-1]} records"
    if claims:
        said = "; ".join(map(_of_architectures, claims))
        return f"{on} ({section.table.title}), {said}. {_verdicts(compared)}, and each checkpoint is one training run."
    said = " and ".join(map(_of_one, compared))
    return (
        f"{on} ({section.table.title}), {said}. {_verdicts(compared)}; with one architecture, and each checkpoint one "
        "training run, this says nothing yet of others."
    )


def words(name: str) -> str:
    """A value's name as text has it."""
    return name.replace("_", " ")


def by(method: str) -> str:
    """A method as text has it, of a metric that has none nothing."""
    return f" by {method}" if method else ""


def signed(value: float) -> str:
    """With its sign, three digits."""
    return f"{value:+.3f}".replace("-", "−")


def plain(value: float, digits: int = 3) -> str:
    """With so many digits, and a true minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def within(of: Bounds) -> str:
    """The interval in words."""
    return f"95 % interval {plain(of.low)} to {plain(of.high)}"


def _of_one(it: Comparison) -> str:
    return (
        f"{it.architecture} has {words(it.value)} {plain(it.dcls)} with DCLS and {plain(it.standard)} without"
        f"{by(it.method)}, a difference of {signed(it.difference.mean)} ({within(it.difference)})"
    )


def _of_architectures(it: Claim) -> str:
    mean = f", on average by {signed(it.difference.mean)} ({within(it.difference)})" if it.difference else ""
    return (
        f"DCLS is better in {words(it.value)} for {it.better} of {it.architectures} architectures{by(it.method)}{mean}"
        f", and {it.better} of {it.untied} is p = {it.p:.2g} by a sign test"
    )


def _verdicts(compared: Sequence[Comparison]) -> str:
    verdicts = [it.verdict for it in compared]
    number = len(verdicts)
    return (
        f"Of {number} difference{'s' * (number > 1)} {verdicts.count(1)} favour{'s' * (verdicts.count(1) == 1)} DCLS "
        f"beyond the interval, {verdicts.count(-1)} the standard model, {verdicts.count(0)} neither"
    )


def _of_best(sections: Sequence[Section]) -> str:
    nothing = "No model is here both with DCLS and without on the same records, so nothing is compared."
    section = next((it for it in sections if it.shown), None)
    if section is None or section.shown is None:
        return f"{nothing} The tables below show what there is."
    measure = measure_of(section.shown)
    having = [
        row for row in section.table.rows if records_of(row.result, section.shown) is not None and row.result.counted
    ]
    if not having:
        return f"{nothing} No record counts."
    best = max(having, key=lambda row: measure.better * row.result.values[section.shown or ""])
    found = section.intervals.get(("cell", best.number, section.shown))
    value = f"{words(section.shown)} ({section.table.title}) is {plain(best.result.values[section.shown])}"
    who = f"{best.result.name}{by(best.result.labels.get('method', ''))} on {best.result.counted} records"
    return f"{nothing} The best {value}, of {who}{f', {within(found)}' if found else ''}."

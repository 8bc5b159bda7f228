"""All that a report says of a collection of results, in numbers and in words: the page only sets it out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dcls_jax.eval.report import comparisons, series
from dcls_jax.eval.report.collection import Collection, Row, is_sample
from dcls_jax.eval.report.comparisons import Bounds, Claim, Comparison, Key
from dcls_jax.eval.report.grouping import Table, tables
from dcls_jax.eval.report.measures import measure_of, records_of
from dcls_jax.eval.report.series import Agreement, Curve, Scatter, Spread

_SCATTERS = 24  # in a page, so that it stays small
_NAMED = 4  # comparisons that the answer names one by one
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

    On two cores some minutes for 50,000 records, however many results there are.
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
        claims=comparisons.claims(compared, shown, resamples=resamples),
        curves=series.curves(table, intervals),
        shown=shown,
        spreads=series.spreads(table, shown) if shown else (),
        scatters=series.scatters(table, shown)[:_SCATTERS] if shown else (),
    )


def sampled(rows: Sequence[Row]) -> str:
    """Whether "all", "some" or "none" of the results are of the sample; lists in memory do not say what they hold."""
    by_folder = {row.of.folder: row for row in rows}
    known = [is_sample(row) for row in by_folder.values() if not _in_memory(row.of.run.get("data"))]
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
    on = f"on {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} records ({section.table.title})"
    if claims:
        said = "; ".join(map(_of_architectures, claims))
        return f"{said}; {on}. {_verdicts(compared)}, and each checkpoint is one training run."
    if len(compared) > _NAMED:
        better = sum(it.difference.mean * it.measure.better > 0 for it in compared)
        who = f"{words(section.shown)} of {compared[0].architecture}"
        said = f"With DCLS, {who} is better in {better} of {len(compared)} cases"
    else:
        first = f"With DCLS, {words(section.shown)} of {compared[0].architecture} is "
        said = first + " and ".join(map(_of_one, compared))
    return (
        f"{said}, {on}. {_verdicts(compared)}; this is one architecture and one training run of each model, and says "
        "nothing yet of others."
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
    difference = f"{signed(it.difference.mean)}, {within(it.difference)}"
    return f"{plain(it.dcls)} against {plain(it.standard)}{by(it.method)} ({difference})"


def _of_architectures(it: Claim) -> str:
    mean = f", on average by {signed(it.difference.mean)} ({within(it.difference)})" if it.difference else ""
    return (
        f"DCLS is better in {words(it.value)} for {it.better} of {it.architectures} architectures{by(it.method)}{mean}"
        f", and {it.better} of {it.untied} is p = {it.p:.2g} by a sign test"
    )


def _verdicts(compared: Sequence[Comparison]) -> str:
    verdicts = [it.verdict for it in compared]
    all_of_them = {1: "The difference", 2: "Both differences"}.get(len(verdicts), f"All {len(verdicts)} differences")
    if set(verdicts) in ({1}, {-1}):
        better = "DCLS" if verdicts[0] == 1 else "the standard model"
        return f"{all_of_them} {_favour(len(verdicts))} {better} beyond the interval"
    if set(verdicts) == {0}:
        return f"{all_of_them} {'is' if len(verdicts) == 1 else 'are'} within the interval of none"
    return (
        f"Of {len(verdicts)} differences, {verdicts.count(1)} {_favour(verdicts.count(1))} DCLS beyond the interval, "
        f"{verdicts.count(-1)} the standard model, and {verdicts.count(0)} neither"
    )


def _favour(count: int) -> str:
    return "favours" if count == 1 else "favour"


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

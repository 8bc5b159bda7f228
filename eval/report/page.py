"""A report as one page: what `analysis` found, set out by `page.html`; nothing is computed, nothing is fetched."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dcls_jax.eval.report import figures
from dcls_jax.eval.report.analysis import DRAWN, Analysis, Section, by, plain, signed, within, words
from dcls_jax.eval.report.collection import Row
from dcls_jax.eval.report.comparisons import CONFIDENCE, SEED, Comparison
from dcls_jax.eval.report.measures import measure_of
from dcls_jax.eval.report.series import Curve, architectures
from dcls_jax.eval.report.tables import labels_of
from dcls_jax.eval.status import Status

_RECORDS = 10_000  # of all results together that the page lists; the CSV file has them all


def render(
    analysis: Analysis,
    galleries: Sequence[Mapping[str, Any]] = (),
    *,
    command: str = "",
    csv: str = "",
    ranges: Mapping[int, tuple[int, int]] | None = None,
) -> str:
    """The page. command: that made it. csv: the name of the file of all rows, and each result's lines in it."""
    rows = analysis.collection.rows
    environment = Environment(
        loader=PackageLoader("dcls_jax.eval.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": words, "plain": plain, "signed": signed, "p_value": p_value, "exact": exact}
    return environment.get_template("page.html").render(
        analysis=analysis,
        title=title(analysis),
        sections=analysis.sections,
        forest=analysis.forest,
        galleries=galleries,
        folders=[_folder(row) for row in {row.of.folder: row for row in rows}.values()],
        command=command,
        csv=csv,
        ranges=ranges or {},
        listed=max(1, _RECORDS // max(1, len(rows))),
        records=_records,
        confidence=f"{100 * CONFIDENCE:g} %",
        seed=SEED,
        figures=figures,
        measure_of=measure_of,
        labels_of=labels_of,
        by=by,
        within=within,
        told=told,
        about=_about,
        groups=curve_groups,
    )


def title(analysis: Analysis) -> str:
    """What the report is of; plainly so where the data are drawn."""
    compares = any(section.compared for section in analysis.sections)
    of = "What vision models look at, with DCLS and without" if compares else "What vision models look at"
    return of + {"all": f": {DRAWN}", "some": f": partly {DRAWN}", "none": ""}[analysis.sample]


def data_words(data: Any) -> str:
    """What a run's data are called."""
    if isinstance(data, list) and all(isinstance(file, dict) and "file" in file for file in data):
        count = sum(file.get("records", 0) for file in data)
        names = [str(file["file"]) for file in data]
        shown = names if len(names) < 4 else [names[0], "...", names[-1]]
        return f"{', '.join(shown)} ({count} records)"
    if isinstance(data, dict):
        if "first" in data:
            return f"the first {data['first']} of {data_words(data.get('of'))}"
        if "pictures" in data:
            return f"{data_words(data['pictures'])}, {data.get('classes_of_pictures', '')} classes of pictures"
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in data.items())
    return json.dumps(data)


def p_value(p: float) -> str:
    """Two digits; very small ones as a bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def exact(value: float) -> str:
    """Four digits, as the terminal has it; nothing for what is not a number."""
    return plain(value, 4) if math.isfinite(value) else ""


def told(section: Section, row: Row, separator: str = " · ") -> str:
    """What tells a row from others of its table."""
    labels = labels_of(row.result)
    return separator.join(labels[name] for name in section.table.told_by if name in labels)


def curve_groups(lines: Sequence[Curve]) -> list[tuple[str, list[Curve]]]:
    """Curves by architecture, so that a figure holds few."""
    names = architectures([line.row for line in lines])
    return [(name, [line for line in lines if architectures([line.row]) == [name]]) for name in names]


def _about(it: Comparison) -> str:
    return (
        f"{it.architecture}{by(it.method)}: DCLS minus standard {signed(it.difference.mean)}, "
        f"{within(it.difference)}, {it.n} records"
    )


def _records(row: Row, count: int) -> list[list[str]]:
    """The first so many records of a result, as the page lists them."""
    result, statuses = row.result, list(Status)
    columns = [of for of in result.scores.values() if of.ndim == 1]
    return [
        [
            str(record),
            row.of.places[record],
            "" if result.classes[record] < 0 else str(int(result.classes[record])),
            str(statuses[result.status[record]]),
            *(exact(float(column[record])) for column in columns),
        ]
        for record in range(min(count, len(result.status)))
    ]


def _folder(row: Row) -> dict[str, Any]:
    """How the results of a folder were made."""
    run, result = row.of.run, row.result
    arguments = run["arguments"]
    hosts = f", {run['hosts']} hosts" if run.get("hosts", 1) > 1 else ""
    several = (arguments.get(name) for name in ("presets", "protocols", "transforms"))
    presets = next((names for names in several if names), [arguments.get("preset", "")])
    return {
        "folder": row.of.folder.name,
        "evaluation": arguments["evaluation"],
        "model": result.name,
        "method": arguments.get("method", ""),
        "presets": ", ".join(presets),
        "data": data_words(run.get("data")),
        "records": len(row.of.places),
        "seconds": result.seconds,
        "started": run.get("started", ""),
        "command": run.get("command", ""),
        "devices": f"{run.get('devices', '')}{hosts}",
        "versions": ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()),
        "weights": run.get("weights", ""),
        "program": run.get("program", ""),
        "batch": arguments.get("batch_size", ""),
        "transform": json.dumps(arguments.get("transform", {})),
        "bad": list(dict.fromkeys(line for it in row.of.results for line in it.bad_records)),
    }

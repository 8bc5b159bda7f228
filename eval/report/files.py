"""The files of a report: the page, the rows of all records beside it, and the model index."""

from collections.abc import Sequence
from pathlib import Path

from dcls_jax.eval.report.analysis import analyse
from dcls_jax.eval.report.collection import Row, collect, is_sample
from dcls_jax.eval.report.comparisons import RESAMPLES
from dcls_jax.eval.report.galleries import galleries
from dcls_jax.eval.report.modelindex import write_model_index
from dcls_jax.eval.report.page import data_words, render
from dcls_jax.eval.report.rows import write_rows
from dcls_jax.eval.results import check_writable
from dcls_jax.files import AnyPath, as_path, make_folder, write_bytes


def write_report(
    results: Sequence[AnyPath],
    out: AnyPath,
    *,
    command: str = "",
    resamples: int = RESAMPLES,
) -> list[Path]:
    """Write the page `out`, NAME.csv and results.json beside it, of the results in folders or below them.

    command: what the page says it was made by. Returns the paths.
    Raises ResultsError as `collect` and `galleries` do, ValueError for an `out` without the ending .html, and OSError.
    """
    page = as_path(out)
    if page.suffix not in (".html", ".htm"):
        raise ValueError(f"out (={str(out)!r}) must end in .html")
    check_writable(page.parent)
    collection, shown = collect(results), galleries(results)
    analysis = analyse(collection, resamples=resamples)
    make_folder(page.parent)
    rows, index = page.with_suffix(".csv"), page.with_name("results.json")
    ranges = write_rows(rows, collection)
    write_model_index(index, collection, _data)
    content = render(analysis, shown, command=command, csv=rows.name, ranges=ranges)
    write_bytes(page, content.encode(errors="backslashreplace"))
    return [page, rows, index]


def _data(row: Row) -> str:
    return f"{'built-in, drawn sample: ' * is_sample(row)}{data_words(row.of.run.get('data'))}"

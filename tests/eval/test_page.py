"""The report's page, and the files beside it: their numbers are those of the results, and what is not there is said."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pages
import pytest
import tiny
from scipy import stats

from dcls_jax.eval import ResultsError, statistics
from dcls_jax.eval.clickme import HUMAN_CEILING
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.demo import SAMPLE
from dcls_jax.eval.report.analysis import _verdicts, analyse
from dcls_jax.eval.report.collection import collect
from dcls_jax.eval.report.files import write_report
from dcls_jax.eval.report.measures import measure_of
from dcls_jax.eval.report.page import render
from tests.conftest import slow

QUICK = 200  # resamples, where intervals themselves are not tested


class Page(HTMLParser):
    """The cells of tables by the heading before them, and the elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self.cells.append((dict(attributes), ""))
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            attributes, text = self.cells[-1]
            self.cells[-1] = attributes, text + data


def page_of(folder: Path, resamples: int = QUICK) -> str:
    return render(analyse(collect([folder]), resamples=resamples))


def words(text: str) -> str:
    return " ".join(text.split())


def test_values_in_the_page_are_those_of_the_results(tmp_path: Path) -> None:
    pages.pair(tmp_path, constant=[3, 5])
    collection = collect([tmp_path])
    page = Page(render(analyse(collection, resamples=QUICK)))
    shown = [(attributes["data-v"], text[:6]) for attributes, text in page.cells if attributes.get("data-v")]
    for row in collection.rows:
        for value in row.result.values.values():
            assert (str(value), f"{value:.4f}") in shown
        assert row.result.counted == 38
    texts = [words(text) for _, text in page.cells]
    assert texts.count("2 constant map") == 2 + 2  # in the table, and in how this was made
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a" and "href" in attributes}
    ids = {f"#{attributes['id']}" for _, attributes in page.elements if attributes.get("id")}
    assert {link for link in links if link and link.startswith("#")} <= ids


@pytest.mark.slow
def test_models_are_compared_on_the_records_that_count_for_both(tmp_path: Path) -> None:
    standard, dcls = pages.scores(1), pages.scores(2, shift=0.1)
    pages.write(tmp_path / "a", "small", {"aligned": {"spearman": standard}}, constant=[0, 1, 2])
    pages.write(tmp_path / "b", "small_dcls", {"aligned": {"spearman": dcls}}, constant=[2, 7])
    analysis = analyse(collect([tmp_path]))
    (it,) = (it for it in analysis.sections[0].compared if it.value == "alignment")
    common = np.delete(np.arange(40), [0, 1, 2, 7])
    a, b = (of[common].astype(float) / HUMAN_CEILING for of in (standard, dcls))
    assert it.n == 36
    assert (it.standard, it.dcls) == pytest.approx((a.mean(), b.mean()))
    assert it.difference.mean == pytest.approx((b - a).mean())
    error = (b - a).std(ddof=1) / 6
    assert it.difference.high - it.difference.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert it.p == pytest.approx(stats.wilcoxon(b, a, zero_method="pratt").pvalue)
    assert f"{it.difference.mean:+.3f}".replace("-", "−") in analysis.answer
    assert "on 36 records" in analysis.answer
    assert "one training run" in analysis.answer


def test_a_value_that_is_no_mean_over_records_has_no_interval(tmp_path: Path) -> None:
    pages.pair(tmp_path)
    summary = json.loads((tmp_path / "small" / "summary.json").read_text())
    summary["results"]["aligned"]["alignment"] += 1e-3
    (tmp_path / "small" / "summary.json").write_text(json.dumps(summary))
    section = analyse(collect([tmp_path]), resamples=QUICK).sections[0]
    assert {it.value for it in section.compared} == {"mean_spearman"}
    number = next(row.number for row in section.table.rows if row.result.name == "small")
    assert ("cell", number, "alignment") not in section.intervals
    assert ("cell", number, "mean_spearman") in section.intervals


@pytest.mark.parametrize("metric", ["accuracy", slow("faithfulness"), slow("localisation")])
def test_every_metric_has_its_place(metric: str, shards: Path, tmp_path: Path) -> None:
    results = tiny.measure(metric, shards, out=tmp_path / "in", name="tiny")
    page, *_ = write_report([tmp_path / "in"], tmp_path / "report.html", resamples=QUICK)
    shown = Page(page.read_text())
    values = [attributes.get("data-v") for attributes, _ in shown.cells]
    aside = {"tied", "constant", "complexity", "dead"}  # of which neither more nor less is better
    assert {name for result in results for name in result.values if not measure_of(name).better} <= aside
    for result in results:
        assert all(str(value) in values for value in result.values.values())
        assert ", ".join([result.title, *map(" ".join, result.labels.items())]) in shown.text
        for status, number in result.left_out.items():
            assert f"{number} {status}" in shown.text


def test_the_mean_of_classes_means_is_compared_by_classes(tmp_path: Path) -> None:
    hits = np.random.default_rng(0).integers(0, 2, (2, 40)).astype(np.float32)
    hits[:, ::4] = [[0], [1]]  # class 0
    for name, of in zip(("small", "small_dcls"), hits, strict=True):
        pages.write(
            tmp_path / name, name, {"pointing": {"hit": of}}, evaluation="faithfulness", label="preset", constant=[1]
        )
        file = tmp_path / name / "summary.json"
        summary = json.loads(file.read_text())
        by_class = [np.delete(of, 1)[np.delete(np.arange(40) % 4, 1) == label].mean() for label in range(4)]
        summary["results"]["pointing"]["hit_seen_classes"] = float(np.mean(by_class))
        file.write_text(json.dumps(summary))
    section = analyse(collect([tmp_path]), resamples=QUICK).sections[0]
    (it,) = (it for it in section.compared if it.value == "hit_seen_classes")
    values = [row.result.values["hit_seen_classes"] for row in section.table.rows]
    assert [it.standard, it.dcls] == pytest.approx(values)
    assert it.difference.mean == pytest.approx(values[1] - values[0])


@pytest.mark.slow
def test_results_with_many_records_are_resampled_together_each_on_its_own(tmp_path: Path) -> None:
    standard, dcls = pages.scores(1, 400), pages.scores(2, 400, shift=0.1)
    pages.write(tmp_path / "a", "small", {"aligned": {"spearman": standard}}, constant=range(0, 60))
    pages.write(tmp_path / "b", "small_dcls", {"aligned": {"spearman": dcls}}, constant=range(40, 100))
    section = analyse(collect([tmp_path])).sections[0]
    (it,) = (it for it in section.compared if it.value == "mean_spearman")
    assert it.n == 300
    alone = statistics.paired_bootstrap((dcls - standard)[100:], key=jax.random.key(1))
    assert it.difference.mean == pytest.approx(float(alone.mean))
    sigma = float(alone.high - alone.low) / 3.92
    ends = float(alone.low), float(alone.high)
    assert (it.difference.low, it.difference.high) == pytest.approx(ends, abs=0.1 * sigma)


@pytest.mark.slow
def test_p_values_of_a_table_are_holms(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two", "three")):
        pages.pair(tmp_path, name, shift=0.05 + 0.1 * number)
    compared = [
        it for it in analyse(collect([tmp_path]), resamples=QUICK).sections[0].compared if it.value == "alignment"
    ]
    p = np.array([it.p for it in compared])
    order = np.argsort(p)
    expected = np.minimum(np.maximum.accumulate(p[order] * [3, 2, 1]), 1)
    assert [compared[at].holm for at in order] == pytest.approx(expected)


@pytest.mark.slow
def test_seven_of_eight_architectures_is_said_to_be_no_proof(tmp_path: Path) -> None:
    for number in range(8):
        pages.pair(tmp_path, f"model{number}", shift=-0.4 if number == 5 else 0.4)
    analysis = analyse(collect([tmp_path]), resamples=QUICK)
    claim = analysis.sections[0].claims[0]
    assert (claim.better, claim.architectures, claim.n) == (7, 8, 40)
    assert claim.p == pytest.approx(0.0703, abs=1e-4)
    text = words(Page(render(analysis)).text)
    assert "7 of 8 is p = 0.07 by a sign test, and each checkpoint is one training run." in text
    assert "7 of 8 is p = 0.07 by a sign test" in analysis.answer


def test_without_a_pair_nothing_is_compared(tmp_path: Path) -> None:
    pages.write(tmp_path / "a", "small", {"aligned": {"spearman": pages.scores(1)}})
    pages.write(tmp_path / "b", "other_dcls", {"aligned": {"spearman": pages.scores(2, shift=1)}})
    analysis = analyse(collect([tmp_path]), resamples=QUICK)
    assert not analysis.forest
    assert analysis.answer.startswith("No model is here both with DCLS and without on the same records")
    assert "of other_dcls by grad_cam on 40 records" in analysis.answer
    assert "DCLS minus standard" not in render(analysis)


def test_other_data_are_not_compared(tmp_path: Path) -> None:
    pages.write(tmp_path / "a", "small", {"aligned": {"spearman": pages.scores(1)}})
    pages.write(tmp_path / "b", "small_dcls", {"aligned": {"spearman": pages.scores(2)}}, data=[{"file": "other"}])
    analysis = analyse(collect([tmp_path]), resamples=QUICK)
    assert len(analysis.sections) == 2
    assert not any(section.compared for section in analysis.sections)


def test_a_pair_without_common_records_is_named(tmp_path: Path) -> None:
    pages.write(tmp_path / "a", "small", {"aligned": {"spearman": pages.scores(1)}}, constant=range(39))
    pages.write(tmp_path / "b", "small_dcls", {"aligned": {"spearman": pages.scores(2)}})
    text = words(Page(page_of(tmp_path)).text)
    assert "0 comparisons" not in text
    pages.write(tmp_path / "c", "large", {"aligned": {"spearman": pages.scores(1)}}, constant=range(40))
    pages.pair(tmp_path, "third")
    analysis = analyse(collect([tmp_path]), resamples=QUICK)
    lines = analysis.sections[0].uncompared
    assert lines[0] == "small_dcls and small, alignment: fewer than two records count for both"
    assert lines[0] in words(Page(render(analysis)).text)
    assert {it.architecture for it in analysis.sections[0].compared} == {"third"}


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\"'&"
    pages.write(tmp_path / "a", name, {"aligned": {"spearman": pages.scores(1)}}, method="<b>bold</b>")
    pages.write(tmp_path / "b", f"{name}_dcls", {"aligned": {"spearman": pages.scores(2)}}, method="<b>bold</b>")
    text = page_of(tmp_path)
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "b" not in {tag for tag, _ in page.elements}
    assert f"{name}_dcls" in page.text
    assert "<script>alert" not in text


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    pages.pair(tmp_path)
    page = Page(page_of(tmp_path))
    addresses = [of.get(name) or "" for _, of in page.elements for name in ("src", "href")]
    assert all(address.startswith(("#", "data:")) for address in addresses if address)
    assert not {"link", "iframe"} & {tag for tag, of in page.elements if of.get("rel") != "icon"}
    assert not re.search(r"url\(|@import|https?:", page_of(tmp_path))


def test_pictures_have_words(tmp_path: Path) -> None:
    pages.pair(tmp_path)
    page = Page(page_of(tmp_path))
    figures = [of for tag, of in page.elements if tag == "svg" and of.get("role") == "img"]
    assert figures
    assert all(of.get("aria-label") for of in figures)


def test_the_model_index_is_the_same_bytes_wherever_the_results_are(tmp_path: Path) -> None:
    pages.pair(tmp_path / "one", constant=[1])
    shutil.copytree(tmp_path / "one" / "small", tmp_path / "two" / "z")
    shutil.copytree(tmp_path / "one" / "small_dcls", tmp_path / "two" / "y")
    run = json.loads((tmp_path / "two" / "z" / "run.json").read_text())
    (tmp_path / "two" / "z" / "run.json").write_text(json.dumps(run | {"started": "later"}))
    indices = []
    for name in ("one", "two"):
        write_report([tmp_path / name], tmp_path / f"page_{name}" / "report.html", resamples=QUICK)
        indices.append((tmp_path / f"page_{name}" / "results.json").read_bytes())
    assert indices[0] == indices[1]
    models = json.loads(indices[0])["model-index"]
    assert [model["name"] for model in models] == ["small", "small_dcls"]
    (entry,) = models[0]["results"]
    assert entry["task"]["type"] == "image-classification"
    assert entry["dataset"] == {"type": "clickme", "name": "val-0.tfrecords (40 records)"}
    metrics = {metric["type"]: metric for metric in entry["metrics"]}
    (row,) = (row for row in collect([tmp_path / "one"]).rows if row.result.name == "small")
    assert metrics["alignment"]["value"] == row.result.values["alignment"]
    assert metrics["alignment"]["name"] == "ClickMe human alignment, alignment, method grad_cam, protocol aligned"
    assert metrics["counted"]["value"] == 39
    assert metrics["left out: constant map"]["value"] == 1


def test_rows_hold_all_scores(tmp_path: Path) -> None:
    standard, dcls = pages.pair(tmp_path / "in", constant=[4])
    page, rows, _ = write_report([tmp_path / "in"], tmp_path / "out" / "page.html", resamples=QUICK)
    with rows.open(encoding="utf-8", newline="") as file:
        lines = [*csv.reader(file)]
    heading = ["metric", "model", "method", "protocol", "record", "place", "class", "status", "value", "score"]
    assert lines[0] == heading
    ranges = re.findall(r"page\.csv#row=(\d+)-(\d+)", page.read_text())
    assert ranges == [("2", "41"), ("42", "81")]
    for (first, last), expected, model in zip(ranges, (standard, dcls), ("small", "small_dcls"), strict=True):
        of_model = [dict(zip(heading, line, strict=True)) for line in lines[int(first) - 1 : int(last)]]
        assert {line["model"] for line in of_model} == {model}
        scores = [np.float32(line["score"]) if line["score"] else None for line in of_model]
        assert scores == [None if number == 4 else score for number, score in enumerate(expected)]
        assert of_model[4]["status"] == "constant map"
        assert of_model[7]["place"] == "val-0.tfrecords, record 7"


def test_the_title_says_that_the_sample_is_drawn(tmp_path: Path) -> None:
    pages.pair(tmp_path / "drawn", data=ClickMe(SAMPLE).identity())
    assert "<h1>What vision models look at, with DCLS and without: the built-in, drawn sample</h1>" in page_of(
        tmp_path / "drawn"
    )
    pages.pair(tmp_path / "first", data={"first": 5, "of": {"pictures": ClickMe(SAMPLE).identity()}})
    assert "without: the built-in, drawn sample</h1>" in page_of(tmp_path / "first")
    pages.pair(tmp_path / "drawn", "other")
    assert "without: partly the built-in, drawn sample</h1>" in page_of(tmp_path / "drawn")
    pages.pair(tmp_path / "photographs")
    assert "drawn" not in page_of(tmp_path / "photographs")


def test_curves_and_presets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("small", "small_dcls", "large"):
        curve = np.sort(rng.uniform(0, 1, (40, 29)), 1)[:, ::-1]
        values = {"deletion": curve.mean(1), "deletion_curve": curve}
        presets = {"rise": values, "group_cam_2021": values}
        pages.write(tmp_path / name, name, presets, evaluation="faithfulness", label="preset")
    analysis = analyse(collect([tmp_path]), resamples=QUICK)
    section = analysis.sections[0]
    lines = section.curves["deletion"]
    assert [line.row.result.name for line in lines] == ["large", "small", "small_dcls"]
    np.testing.assert_allclose(lines[0].mean, lines[0].row.result.scores["deletion_curve"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(lines[0].x, np.arange(29) / 28, rtol=1e-6)
    assert (lines[0].low < lines[0].mean).all()
    (agreement,) = analysis.agreements
    assert (agreement.value, agreement.ranked, agreement.n) == ("deletion", 3, 40)
    np.testing.assert_allclose(agreement.correlations, np.ones((2, 2)))
    text = render(analysis)
    assert text.count("<polyline points=") >= 3
    assert "Does the preset matter?" in text


def test_methods_are_held_against_each_other(tmp_path: Path) -> None:
    first, second = pages.scores(1), pages.scores(2)
    pages.write(tmp_path / "a", "small", {"aligned": {"spearman": first}}, constant=[0])
    pages.write(tmp_path / "b", "small", {"aligned": {"spearman": second}}, constant=[1], method="layer_cam")
    section = analyse(collect([tmp_path]), resamples=QUICK).sections[0]
    (plot,) = section.scatters
    assert plot.n == 38
    assert plot.correlation == pytest.approx(stats.spearmanr(first[2:], second[2:]).statistic)
    assert plot.records.tolist() == [*range(2, 40)]
    assert [spread.n for spread in section.spreads] == [39, 39]
    assert all(spread.counts.sum() == spread.n for spread in section.spreads)
    assert section.spreads[0].quantiles[2] == pytest.approx(np.median(first[1:]) / HUMAN_CEILING)


@pytest.mark.slow
def test_many_records_are_counted_in_cells_and_listed_in_part(tmp_path: Path) -> None:
    count = 12_000
    for method, seed in (("grad_cam", 1), ("layer_cam", 2)):
        pages.write(tmp_path / method, "small", {"aligned": {"spearman": pages.scores(seed, count)}}, method=method)
    analysis = analyse(collect([tmp_path]), resamples=QUICK)
    (plot,) = analysis.sections[0].scatters
    assert plot.cells is not None
    assert plot.cells.sum() == count
    text = render(analysis)
    assert "The first 5000 are listed." in text
    assert len(text) < 5_000_000


def test_what_is_missing_or_unfinished_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"^.*nowhere is no folder$"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match=r"^.*empty holds no results \(run.json\), nor does a folder below it$"):
        collect([tmp_path / "empty"])
    pages.pair(tmp_path / "in")
    (tmp_path / "in" / "small_dcls" / "summary.json").unlink()
    with pytest.raises(ResultsError, match=r"^.*small_dcls holds an unfinished run; run it again to its end$"):
        collect([tmp_path / "in" / "small_dcls"])
    with pytest.warns(UserWarning, match=r"^.*small_dcls holds an unfinished run; run it again to its end$"):
        collection = collect([tmp_path / "in"])
    assert [row.result.name for row in collection.rows] == ["small"]
    assert "small_dcls holds an unfinished run" in render(analyse(collection, resamples=QUICK))


def test_of_two_runs_of_one_evaluation_the_later_is_shown(tmp_path: Path) -> None:
    for name, started in (("b", "2026-01-02"), ("c", "2026-01-01")):
        folder = pages.write(tmp_path / name, "small", {"aligned": {"spearman": pages.scores(ord(name))}})
        run = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(run | {"started": started}))
    with pytest.warns(UserWarning, match=r"/c and .*/b hold the same evaluation; the later is shown, .*/b$"):
        collection = collect([tmp_path])
    assert [row.of.folder.name for row in collection.rows] == ["b"]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([1, 0], "Of 2 differences, 1 favours DCLS beyond the interval, 0 the standard model, and 1 neither"),
        ([1, 1, -1], "Of 3 differences, 2 favour DCLS beyond the interval, 1 the standard model, and 0 neither"),
        ([-1], "The difference favours the standard model beyond the interval"),
        ([1, 1], "Both differences favour DCLS beyond the interval"),
    ],
)
def test_differences_are_counted_in_english(verdicts, said):
    assert _verdicts([SimpleNamespace(verdict=verdict) for verdict in verdicts]) == said

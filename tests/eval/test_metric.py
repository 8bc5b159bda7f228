"""What every metric has of its run, by one that is made up: the range of small pictures, and their mean times two."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array

from dcls_jax.eval import RecordError, ResultsError, Settings
from dcls_jax.eval.data.source import Listed, as_source
from dcls_jax.eval.jobs import run
from dcls_jax.eval.metric import Metric, Result, means
from dcls_jax.eval.program import OnHost
from dcls_jax.eval.results import ResultsFolder
from dcls_jax.eval.status import Scores, Status, first_reason, map_status


class Record(NamedTuple):
    picture: np.ndarray | Array


def prepare(sample: np.ndarray | Status | str) -> Record | Status:
    if isinstance(sample, str) and not isinstance(sample, Status):
        raise RecordError(sample)
    return sample if isinstance(sample, Status) else Record(sample)


def step(model: tiny.Tiny, records: Record) -> dict[str, Scores]:
    low, high = records.picture.min((1, 2)), records.picture.max((1, 2))
    spread = Scores({"range": high - low, "ends": jnp.stack([low, high], 1)}, map_status(records.picture))
    return {
        "spread": spread,
        "all": Scores({"double": 2 * records.picture.mean((1, 2))}, jnp.zeros_like(low, jnp.int8)),
    }


METRIC = Metric(
    name="range",
    title="Range of pictures",
    variant="preset",
    variants=dict.fromkeys(("spread", "all"), means),
    labels={"method": "none"},
    blank=Record(np.zeros((4, 4), np.float32)),
    prepare=prepare,
    step=step,
)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((4, 4), np.float32)


SAMPLES = [*map(picture, range(11)), np.ones((4, 4), np.float32), Status.TOO_LARGE, np.full((4, 4), np.inf, np.float32)]


def evaluate(samples: list[object], metric: Metric[object, Record] = METRIC, **options: object) -> tuple[Result, ...]:
    settings = Settings(**{"batch_size": 8, "progress": False} | options)  # type: ignore[arg-type]
    return run(metric, tiny.Tiny(), Listed(samples), settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole() -> tuple[Result, ...]:
    return evaluate([*SAMPLES])


def test_each_variant_is_a_result_with_its_values_and_what_it_left_out(whole: tuple[Result, ...]) -> None:
    spread, all_pictures = whole
    assert (spread.title, spread.name, spread.labels) == (
        "Range of pictures",
        "Tiny",
        {"method": "none", "preset": "spread"},
    )
    ranges = [np.ptp(picture(i)) for i in range(11)]
    np.testing.assert_allclose(spread.scores["range"], [*ranges, np.nan, np.nan, np.nan], rtol=1e-6)
    assert spread.scores["ends"].shape == (14, 2)
    assert spread.values == {"range": pytest.approx(np.mean(ranges))}
    assert spread.counted == 11
    assert spread.left_out == {Status.CONSTANT: 1, Status.NOT_FINITE: 1, Status.TOO_LARGE: 1}
    # a score that is not finite does not count, whatever the step says of it
    assert all_pictures.left_out == {Status.NOT_FINITE: 1, Status.TOO_LARGE: 1}
    assert all_pictures.values["double"] == pytest.approx(2 * np.mean([*map(np.mean, SAMPLES[:12])]))


def test_summary_and_result_say_the_same(whole: tuple[Result, ...], tmp_path: Path) -> None:
    evaluate([*SAMPLES], out=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for result in whole:
        there = summary["results"][result.labels["preset"]]
        assert there.pop("seconds") > 0
        assert there == {key: value for key, value in result.summary().items() if key != "seconds"}
    assert summary["results"]["spread"]["left_out"] == {"constant map": 1, "not finite": 1, "too large": 1}
    assert summary["arguments"]["evaluation"] == "range"
    assert summary["arguments"]["presets"] == ["spread", "all"]


def test_a_sample_that_is_wrong_is_an_error_or_counted(whole: tuple[Result, ...]) -> None:
    samples = [*SAMPLES[:3], "no picture", *SAMPLES[3:]]
    with pytest.raises(RecordError, match=r"^sample 3: no picture"):
        evaluate(samples)
    for result, without in zip(evaluate(samples, skip_bad=True), whole, strict=True):
        assert result.left_out == without.left_out | {Status.UNREADABLE: 1}
        assert result.bad_records == ("sample 3: no picture",)
        for name, values in without.scores.items():
            np.testing.assert_array_equal(np.delete(result.scores[name], 3, 0), values)


def test_nothing_but_bad_records_leaves_no_numbers() -> None:
    (spread, _) = evaluate(["no picture"] * 3, skip_bad=True)
    assert (spread.counted, spread.left_out) == (0, {Status.UNREADABLE: 3})
    assert np.isnan(spread.values["range"])


def test_a_stopped_run_goes_on(whole: tuple[Result, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = ResultsFolder.save

    def stop(folder: ResultsFolder, batch: int, arrays: dict[str, np.ndarray]) -> None:
        if batch:
            raise KeyboardInterrupt
        save(folder, batch, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsFolder, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate([*SAMPLES], out=tmp_path)
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-000000.npz"]
    for result, undisturbed in zip(evaluate([*SAMPLES], out=tmp_path), whole, strict=True):
        np.testing.assert_array_equal(result.status, undisturbed.status)
        for name, values in undisturbed.scores.items():
            np.testing.assert_array_equal(result.scores[name], values)


def test_a_folder_of_another_metric_or_of_another_format_is_refused(tmp_path: Path) -> None:
    evaluate([*SAMPLES], out=tmp_path)
    with pytest.raises(ResultsError, match=r"arguments\.evaluation: 'range' there, 'other' now"):
        evaluate([*SAMPLES], replace(METRIC, name="other"), out=tmp_path)
    path = tmp_path / "run.json"
    before = json.loads(path.read_text())
    del before["format"]
    path.write_text(json.dumps(before))
    with pytest.raises(ResultsError, match=r"another run; choose another folder\.\n  format: None there, 4 now"):
        evaluate([*SAMPLES], out=tmp_path)


def test_what_is_no_function_of_arrays_is_scored_on_the_host(tmp_path: Path) -> None:
    """By what was set aside of each record; records left out come to no score."""

    def score(sums: np.ndarray, highest: int) -> dict[str, Scores]:
        status = Status.EASY if highest < 4 else Status.COUNTED
        return {"rows": Scores({"sums": sums[highest // 4, :2]}, status.code)}

    def aside(sample: object) -> int:
        assert isinstance(sample, np.ndarray)
        return int(sample.argmax())

    metric = replace(
        METRIC,
        variants={"rows": means},
        step=lambda model, records: jnp.cumsum(records.picture, 1),
        on_host=OnHost(score, {"rows": Scores({"sums": np.zeros(2, np.float32)}, np.int8(0))}),
        aside=aside,
    )
    (result,) = evaluate([Status.DIFFICULT] * 9 + SAMPLES[:11], metric, out=tmp_path)
    expected = [np.cumsum(sample, 0)[sample.argmax() // 4, :2] for sample in SAMPLES[:11]]
    easy = [sample.argmax() < 4 for sample in SAMPLES[:11]]
    assert 0 < sum(easy) < 11
    np.testing.assert_allclose(result.scores["sums"][9:], np.where(np.c_[easy], np.nan, expected), rtol=1e-6)
    assert result.left_out == {Status.DIFFICULT: 9, Status.EASY: sum(easy)}
    for part in tmp_path.glob("part-*"):
        with np.load(part) as arrays:
            types = {name: values.dtype for name, values in arrays.items()}
            assert types == {"rows.sums": "f4", "rows.status": "i1", "label": "i4"}


def test_no_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="there are no records to evaluate"):
        evaluate([])


def test_statuses_of_maps() -> None:
    maps = np.stack([np.arange(4.0), np.ones(4), [0, 1, np.nan, 2], [0, 1, np.inf, 2]]).reshape(4, 2, 2)
    codes = map_status(jnp.asarray(maps), Status.CONSTANT_HUMAN)
    words = [Status.COUNTED, Status.CONSTANT_HUMAN, Status.NOT_FINITE, Status.NOT_FINITE]
    assert [list(Status)[code] for code in codes] == words
    first = first_reason(jnp.array([0, 0, 3]), jnp.array([0, 4, 4]))
    assert first.tolist() == [0, 4, 3]


def test_a_source_is_taken_as_it_is_and_a_list_by_its_length() -> None:
    listed = as_source([1, 2, 3])
    assert as_source(listed) is listed
    assert (len(listed), listed[2], listed.place(2), listed.identity()) == (
        3,
        3,
        "sample 2",
        {"samples": "list", "records": 3},
    )

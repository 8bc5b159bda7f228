"""The table of results, and the progress lines."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from dcls_jax.eval.clickme import Result, _summary
from dcls_jax.eval.report import print_results
from dcls_jax.eval.status import Status

COUNTED, CONSTANT, UNREADABLE = Status.COUNTED, Status.CONSTANT, Status.UNREADABLE


def result(name: str, protocol: str, scores: list[float], status: list[Status], bad: tuple[str, ...] = ()) -> Result:
    """Of ClickMe, with a score for each record that counts."""
    counted, codes = np.array(scores, np.float32), np.array([s.code for s in status], np.int8)
    per_image = np.full(len(codes), np.nan, np.float32)
    per_image[codes == 0] = counted
    labels = {"method": "grad_cam", "protocol": protocol}
    values = _summary({"spearman": counted})
    return Result("ClickMe human alignment", name, labels, values, {"spearman": per_image}, codes, bad, 1.0, codes)


def printed(results: list[Result], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_results(results, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_table_shows_results_side_by_side() -> None:
    status = [COUNTED, CONSTANT, COUNTED, UNREADABLE, CONSTANT]
    first = result("convnext_tiny", "aligned", [0.2, 0.4], status, ("val-0.tfrecords, record 3",))
    lines = printed(
        [first, result("empty", "published", [], [CONSTANT] * 2), result("whole", "aligned", [0.5], [COUNTED])], 80
    )
    assert lines[0] == "ClickMe human alignment, method grad_cam"
    rows = [line.split() for line in lines[4:8]]
    assert rows == [
        ["convnext_tiny", "aligned", f"{0.3 / 0.65753:.4f}", "0.3000", "2", "2", "constant", "map"],
        ["1", "unreadable"],
        ["empty", "published", "nan", "nan", "0", "2", "constant", "map"],
        ["whole", "aligned", f"{0.5 / 0.65753:.4f}", "0.5000", "1", "0"],
    ]
    assert "bad: val-0.tfrecords, record 3" in lines


def test_what_all_rows_share_stands_in_the_title() -> None:
    lines = printed([result(name, "aligned", [0.5], [COUNTED]) for name in ("convnext_small", "convnext_tiny")], 80)
    assert lines[0] == "ClickMe human alignment, method grad_cam, protocol aligned"
    assert lines[1].split() == ["mean"]
    assert lines[2].split() == ["model", "alignment", "spearman", "counted", "left", "out"]


def test_results_of_a_metric_and_preset_share_a_table_wherever_they_stand() -> None:
    def faithfulness(name: str, preset: str) -> Result:
        alike = result(name, "aligned", [0.5], [COUNTED])
        return replace(alike, title="Faithfulness", labels={"method": "grad_cam", "preset": preset})

    lines = printed([faithfulness(name, preset) for name in ("one", "other") for preset in ("rise", "road")], 80)
    assert [line for line in lines if line.startswith("Faithfulness")] == [
        "Faithfulness, method grad_cam, preset rise",
        "Faithfulness, method grad_cam, preset road",
    ]
    assert [line.split()[0] for line in lines if line.startswith(("one", "other"))] == ["one", "other"] * 2


def test_one_model_stands_in_the_title_of_several_rows() -> None:
    lines = printed([result("convnext_tiny", protocol, [0.5], [COUNTED]) for protocol in ("aligned", "published")], 80)
    assert lines[0] == "ClickMe human alignment, model convnext_tiny, method grad_cam"
    assert [line.split()[0] for line in lines[4:6]] == ["aligned", "published"]


def test_what_is_too_wide_stacks_what_tells_rows_apart() -> None:
    rows = [
        replace(
            result(name, "aligned", [0.5], [COUNTED]),
            labels={"method": "threshold_grad_cam"},
            values={f"measure {i}": 0.5 for i in range(6)},
        )
        for name in ("convnext_tiny", "convnext_tiny_dcls")
    ]
    rows[1].labels["method"] = "grad_cam"
    numbers = ["0.5000"] * 6
    stacked, wide = ([line.split() for line in printed(rows, width)] for width in (80, 120))
    assert stacked[4:6] == [["convnext_tiny", *numbers, "1", "0"], ["threshold_grad_cam"]]
    assert wide[4] == ["convnext_tiny", "threshold_grad_cam", *numbers, "1", "0"]


def test_progress_without_a_terminal_is_lines(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.evaluate(shards, progress=True)
    assert capsys.readouterr().err.startswith("20/20 records, ")


def test_of_many_bad_records_ten_are_named_and_the_others_counted() -> None:
    bad = tuple(f"{'long/' * 30}val-0.tfrecords, record {i}: [red]" for i in range(12))
    lines = printed([result("[bold]", "aligned", [0.2], [COUNTED], bad)] * 2, 80)
    assert "[bold]" in "\n".join(lines)
    assert lines[-11:] == [*(f"bad: {line}" for line in bad[:10]), "bad: and 2 more"]


def test_records_of_any_file_name_are_shown_without_moving_the_terminal() -> None:
    bad = (os.fsdecode(b"a\x1b[2J\xff.tfrecords, record 3: bad"),)
    lines = printed([result("tiny", "aligned", [0.2], [COUNTED], bad)], 80)
    assert lines[-1] == "bad: a\\x1b[2J\\udcff.tfrecords, record 3: bad"

"""The table of results, and the progress lines."""

import io
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from dcls_jax.eval.clickme import Result
from dcls_jax.eval.report import print_results


def test_table_shows_results_side_by_side() -> None:
    scores = np.array([0.2, np.nan, 0.4, np.nan], np.float32)
    first = Result("convnext_tiny", "grad_cam", "aligned", scores, 1, ("val-0.tfrecords, record 3",), 2.0)
    second = Result("empty", "grad_cam", "published", np.full(2, np.nan, np.float32), 2, (), 1.0)
    console = Console(file=io.StringIO(), width=120)
    print_results([first, second], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.replace("│", " ").split() for line in text.splitlines() if "grad_cam" in line]
    assert rows[0] == ["convnext_tiny", "grad_cam", "aligned", f"{0.3 / 0.65753:.4f}", "0.3000", "2", "1", "1"]
    assert rows[1] == ["empty", "grad_cam", "published", "nan", "nan", "0", "2", "0"]
    assert "bad: val-0.tfrecords, record 3" in text


def test_progress_without_a_terminal_is_lines(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.evaluate(shards, progress=True)
    assert capsys.readouterr().err.startswith("20/20 records, ")


def test_of_many_bad_records_ten_are_named_and_the_others_counted() -> None:
    console = Console(file=io.StringIO(), width=80)
    scores = np.array([0.2], np.float32)
    bad = tuple(f"{'long/' * 30}val-0.tfrecords, record {i}: [red]" for i in range(12))
    print_results([Result("[bold]", "grad_cam", "aligned", scores, 0, bad, 1.0)] * 2, console)
    assert "[bold]" in console.file.getvalue()  # type: ignore[attr-defined]
    lines = console.file.getvalue().splitlines()[-11:]  # type: ignore[attr-defined]
    assert lines == [*(f"bad: {line}" for line in bad[:10]), "bad: and 2 more"]

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

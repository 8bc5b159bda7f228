"""The log of a run: rows as they come, those after a stop once, and curves where a writer is there."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dcls_jax.training.log import Log, read

COLUMNS = ["step", "loss", "top1"]


def test_rows_after_the_step_that_a_run_goes_on_from_are_written_anew(tmp_path: Path) -> None:
    with Log(tmp_path / "log.csv", COLUMNS, start=0) as log:
        for step in (2, 4, 6):
            log.add({"step": step, "loss": step / 8})
    with (tmp_path / "log.csv").open("a") as file:
        file.write("8,0.")  # where it was killed
    assert [row["step"] for row in read(tmp_path / "log.csv")] == ["2", "4", "6"]
    with Log(tmp_path / "log.csv", COLUMNS, start=4) as log:
        log.add({"step": 6, "loss": 0.1, "top1": 0.5})
    assert read(tmp_path / "log.csv") == [
        {"step": "2", "loss": "0.25", "top1": ""},
        {"step": "4", "loss": "0.5", "top1": ""},
        {"step": "6", "loss": "0.1", "top1": "0.5"},
    ]
    with Log(tmp_path / "log.csv", COLUMNS, start=0):  # from the beginning
        assert read(tmp_path / "log.csv") == []


def test_a_log_with_other_columns_is_not_gone_on_with(tmp_path: Path) -> None:
    with Log(tmp_path / "log.csv", COLUMNS, start=0) as log:
        log.add({"step": 1, "loss": 1.0})
    with pytest.raises(ValueError, match=r"log\.csv has columns step, loss, top1, expected step, loss$"):
        Log(tmp_path / "log.csv", COLUMNS[:2], start=1)


def test_curves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed",))

    module = ModuleType("tensorboardX")
    vars(module)["SummaryWriter"] = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    with Log(tmp_path / "log.csv", COLUMNS, start=4, tensorboard=tmp_path / "curves") as log:
        log.add({"step": 6, "loss": 0.5})
    assert written == [(str(tmp_path / "curves"), 5), ("loss", 0.5, 6), ("closed",)]

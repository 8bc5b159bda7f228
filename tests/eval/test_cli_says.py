"""What the command line says is true: where results are, and whether a stopped command goes on."""

import sys
from pathlib import Path

import pytest

import dcls_jax.models
from dcls_jax.eval import cli
from dcls_jax.eval.demo import SAMPLE, sample_models

NAME = ["--model", "convnext_tiny"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dcls-jax", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_results_are_where_the_evaluation_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = sample_models()["convnext"]
    monkeypatch.setattr(dcls_jax.models, "create_model", lambda *_, **__: model)
    assert run(monkeypatch, "eval", "clickme", str(SAMPLE / "val-0.tfrecords"), *NAME, "--out", str(tmp_path)) == 0
    folder = Path(capsys.readouterr().out.replace("\n", "").rsplit("results: ", 1)[1])
    assert (folder / "summary.json").exists()


def test_models_says_how_each_platform_convolves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "models") == 0
    printed = capsys.readouterr().out
    assert "on cpu, cuda what was measured fastest for each shape" in printed
    assert "on tpu what is so by its compiler's schedules; on other platforms XLA's own" in printed

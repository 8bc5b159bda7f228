"""The command line, as a stranger meets it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcls_jax.eval import cli
from dcls_jax.models import create_model, save_weights


def run(monkeypatch, *arguments):
    """Exit code of `dcls-jax` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["dcls-jax", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


@pytest.mark.parametrize("command", [[], ["demo"], ["convert"], ["cam"], ["eval"], ["eval", "clickme"], ["models"]])
def test_help_explains_every_option(monkeypatch, capsys, command):
    assert run(monkeypatch, *command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_nonsense_ends_with_code_2(monkeypatch, capsys):
    assert run(monkeypatch, "explode") == 2
    assert "No such command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "clickme", "nowhere-*.tfrecords", "--model", "convnext_tiny2"], "not a model"),
        (["eval", "clickme", "x", "--model", "convnext_tiny", "--weights", "no.pth"], "no checkpoint at no.pth"),
        (["convert", "no.pth", "out", "--model", "convnext_tiny"], "no checkpoint at no.pth"),
    ],
)
def test_errors_are_one_line_and_code_1(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_weights(create_model("convnext_tiny", num_classes=4), folder)
    return folder


def test_cam_writes_grid_maps_and_manifest(monkeypatch, tmp_path, weights):
    picture = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(picture)
    (tmp_path / "text.png").write_text("no picture")
    options = ["--model", "convnext_tiny", "--weights", weights, "--num-classes", 4, "--out", tmp_path / "out"]
    assert run(monkeypatch, "cam", picture, picture, *options, "--target", 2, "--layer", "stages.2") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["class"] for entry in manifest["pictures"]] == [2, 2]
    maps = np.load(tmp_path / "out" / "maps.npz")
    assert maps["grad_cam"].shape == maps["threshold_grad_cam"].shape == (2, 14, 14)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "maps.npz", "maps.png"]
    for wrong in (["--methods", "grad_cam,magic"], ["--layer", "stages.9"], ["--target", 4]):
        assert run(monkeypatch, "cam", picture, *options, *wrong) == 1
    assert run(monkeypatch, "cam", tmp_path / "text.png", *options) == 1


def test_converter_is_the_same_command(tmp_path):
    script = Path(cli.__file__).resolve().parents[1] / "convert_weights.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "--swap-positions" in done.stdout

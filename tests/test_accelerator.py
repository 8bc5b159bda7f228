"""benchmarks/accelerator.py in its small form, which is all that a machine without an accelerator can tell of it."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "accelerator.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.long
def test_every_section_measures_on_any_machine(tmp_path):
    done = run("--small", "--out", tmp_path, "--budget", 600)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "measurements.jsonl").read_text().splitlines()]
    wrong = [line for line in lines if "error" in line or line["case"] == "left out"]
    without_torch = [{"section": "torch", "case": "left out", "why": "torch is not installed"}]
    assert wrong == (without_torch if find_spec("torch") is None else [])
    assert {line["case"] for line in lines} >= {
        "device",
        "speed",
        "exact",
        "depthwise",
        "maps",
        "cam",
        "step",
        "section",
    }
    assert all(line["end"] == "exit 0" for line in lines if line["case"] == "section")
    assert all(line["map_of_scale"] < 1e-5 for line in lines if line["case"] == "maps")
    limit = {"float32": 1e-5, "bfloat16": 1e-2}
    assert all(max(line["errors"]) < limit[line["dtype"]] for line in lines if line["case"] == "exact")
    assert all("kept" in line["us"] for line in lines if line["case"] == "depthwise" and not line["gradient"])
    assert run("--tables", tmp_path).stdout.startswith(lines[0]["kind"])


def test_a_section_that_there_is_not_is_named(tmp_path):
    done = run("--sections", "facts,speed", "--out", tmp_path)
    assert done.returncode == 2
    assert "there is no speed, but facts, maps, lowerings, cam, steps, torch" in done.stderr

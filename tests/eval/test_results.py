"""The results folder: what it accepts, refuses and reports."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from dcls_jax.eval.results import ResultsError, ResultsFolder, check_writable, write_json

IDENTITY = {"arguments": {"method": "grad_cam", "sizes": (1, 2)}, "weights": "abc"}


def test_parts_and_summary(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path / "new" / "run", IDENTITY) as folder:
        assert not folder.has(0)
        folder.save(0, {"score": np.array([1.0, np.nan], np.float32)})
    with ResultsFolder(folder.path, IDENTITY) as again:
        assert again.has(0)
        np.testing.assert_array_equal(again.read(0, 2)["score"], np.array([1.0, np.nan], np.float32))
        again.finish({"alignment": float("nan")}, ["here"])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["alignment"] is None
    assert summary["arguments"]["method"] == "grad_cam"


def test_another_run_is_refused(tmp_path: Path) -> None:
    ResultsFolder(tmp_path, IDENTITY)
    other = IDENTITY | {"arguments": {"method": "threshold_grad_cam", "sizes": (1, 2)}}
    with pytest.raises(ResultsError, match=r"arguments\.method: 'grad_cam' there, 'threshold_grad_cam' now") as error:
        ResultsFolder(tmp_path, other)
    assert "weights" not in str(error.value)


def test_of_many_differences_ten_are_named_and_the_others_counted(tmp_path: Path) -> None:
    ResultsFolder(tmp_path, {"data": [{"file": "x" * 1000}] * 100})
    with pytest.raises(ResultsError, match="and 90 more") as error:
        ResultsFolder(tmp_path, {"data": []})
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert max(map(len, lines[1:])) < 300


@pytest.mark.parametrize("content", ['{"a": 1', "[1]", "\xff", '{"a":' * 100_000])
def test_a_run_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(ResultsError, match=r"run\.json cannot be read .*; choose another folder") as error:
        ResultsFolder(tmp_path, IDENTITY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damaged", ["", '{"finished": "', "[]", '{"alignment": 0.25}'])
def test_a_summary_cut_short_is_written_anew(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "summary.json"
    with ResultsFolder(tmp_path, IDENTITY) as folder:
        folder.finish({"alignment": 0.5, "seconds": 1.0}, ["here"])
        whole = path.read_text()
        path.write_text(damaged)
        folder.finish({"alignment": 0.5, "seconds": 1.0}, ["here"])
        assert json.loads(path.read_text()).keys() == json.loads(whole).keys()
        written = path.stat().st_mtime_ns
        folder.finish({"alignment": 0.5, "seconds": 2.0}, ["here"])
        assert path.stat().st_mtime_ns == written


HOLDING = """
import sys, time
from pathlib import Path
from dcls_jax.eval.locks import hold

hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_folder_is_one_runs_until_it_ends_however(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        holder = rf"is in use by process {other.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d "
        with pytest.raises(ResultsError, match=holder):
            ResultsFolder(tmp_path, IDENTITY)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        other.kill()
    with ResultsFolder(tmp_path, IDENTITY), pytest.raises(ResultsError, match=f"process {os.getpid()} "):
        ResultsFolder(tmp_path, IDENTITY)
    ResultsFolder(tmp_path, IDENTITY).close()


def test_a_folder_without_enough_space_is_named(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}'"):
        check_writable(tmp_path / "new" / "folder", 10**18)
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_unicode_are_kept_in_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"photo\xff \x1b.png")
    write_json(tmp_path / "manifest.json", {"file": name})
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"file": name}


def test_parts_without_their_run_are_refused(tmp_path: Path) -> None:
    ResultsFolder(tmp_path, IDENTITY).save(0, {"score": np.zeros(1)})
    (tmp_path / "run.json").unlink()
    with pytest.raises(ResultsError, match=r"without its run\.json"):
        ResultsFolder(tmp_path, IDENTITY)


@pytest.mark.parametrize("content", [b"", b"not a part", "truncated"])
def test_a_damaged_part_is_named(tmp_path: Path, content: bytes | str) -> None:
    folder = ResultsFolder(tmp_path, IDENTITY)
    folder.save(3, {"score": np.zeros(100)})
    part = folder.part(3)
    part.write_bytes(content if isinstance(content, bytes) else part.read_bytes()[:200])
    with pytest.raises(ResultsError, match=r"part-000003\.npz cannot be read"):
        folder.read(3, 100)


def test_a_part_of_another_length_is_named(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path, IDENTITY)
    folder.save(3, {"score": np.zeros(2)})
    with pytest.raises(ResultsError, match=r"part-000003\.npz does not hold 4 results"):
        folder.read(3, 4)


def test_evaluate_refuses_what_differs(shards: Path, tmp_path: Path) -> None:
    tiny.evaluate(shards, out=tmp_path)
    with pytest.raises(ResultsError, match=r"arguments\.batch_size: 8 there, 16 now"):
        tiny.evaluate(shards, out=tmp_path, batch_size=16)
    with pytest.raises(ResultsError, match=r"data\.1\.file: 'val-10\.tfrecords' there, None now"):
        tiny.evaluate([shards / "val-2.tfrecords"], out=tmp_path)
    with pytest.raises(ResultsError, match="weights: ") as error:
        tiny.clickme.evaluate(tiny.Tiny(seed=1), shards, batch_size=8, out=tmp_path, progress=False)  # type: ignore[arg-type]
    assert "program" not in str(error.value)

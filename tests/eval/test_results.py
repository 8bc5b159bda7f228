"""The results folder: what it accepts, refuses and reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from dcls_jax.eval.results import ResultsError, ResultsFolder

IDENTITY = {"arguments": {"method": "grad_cam", "sizes": (1, 2)}, "weights": "abc"}


def test_parts_and_summary(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "new" / "run", IDENTITY)
    assert not folder.has(0)
    folder.save(0, {"score": np.array([1.0, np.nan], np.float32)})
    again = ResultsFolder(folder.path, IDENTITY)
    assert again.has(0)
    np.testing.assert_array_equal(again.read(0, 2)["score"], np.array([1.0, np.nan], np.float32))
    folder.finish({"alignment": float("nan")})
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["alignment"] is None
    assert summary["arguments"]["method"] == "grad_cam"


def test_another_run_is_refused(tmp_path: Path) -> None:
    ResultsFolder(tmp_path, IDENTITY)
    other = IDENTITY | {"arguments": {"method": "threshold_grad_cam", "sizes": (1, 2)}}
    with pytest.raises(ResultsError, match=r"arguments\.method: 'grad_cam' there, 'threshold_grad_cam' now") as error:
        ResultsFolder(tmp_path, other)
    assert "weights" not in str(error.value)


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

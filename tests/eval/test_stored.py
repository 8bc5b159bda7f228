"""Results folders read back: as columns of single records, and as the results they were written from."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from dcls_jax.eval import ResultsError, clickme, results
from dcls_jax.eval.metric import Settings
from dcls_jax.eval.stored import stored


@pytest.fixture
def written(shards: Path, tmp_path: Path) -> tuple[Path, tuple[clickme.Result, ...]]:
    settings = Settings(batch_size=8, out=tmp_path / "run", name="tiny", progress=False)
    return tmp_path / "run", clickme.evaluate_protocols(tiny.Tiny(), shards, settings=settings)  # type: ignore[arg-type]


def test_results_come_back(written: tuple[Path, tuple[clickme.Result, ...]]) -> None:
    folder, expected = written
    found = stored(folder)
    for there, here in zip(found.results, expected, strict=True):
        assert (there.title, there.name, there.labels, there.left_out) == (
            here.title,
            here.name,
            here.labels,
            here.left_out,
        )
        assert there.values == pytest.approx(here.values, nan_ok=True)
        np.testing.assert_array_equal(there.scores["spearman"], here.per_image)
        np.testing.assert_array_equal(there.classes, here.classes)
    assert found.run["arguments"]["method"] == "grad_cam"
    assert len(found.places) == len(expected[0].status)
    assert found.places[0].endswith(", record 0")


def test_a_table_has_a_row_for_each_record_and_variant(written: tuple[Path, tuple[clickme.Result, ...]]) -> None:
    folder, expected = written
    table = results.load(folder)
    assert list(table) == ["record", "place", "label", "model", "method", "protocol", "status", "spearman"]
    count = len(expected[0].status)
    assert {len(column) for column in table.values()} == {2 * count}
    aligned = table["protocol"] == "aligned"
    (result,) = (r for r in expected if r.protocol == "aligned")
    np.testing.assert_array_equal(table["spearman"][aligned], result.per_image)
    np.testing.assert_array_equal(np.isnan(table["spearman"]), table["status"] != "counted")
    assert (table["label"] >= 0).all()


def test_what_is_not_there_or_not_finished_is_named(written: tuple[Path, object], tmp_path: Path) -> None:
    folder, _ = written
    with pytest.raises(ResultsError, match=r"nowhere holds no results"):
        results.load(tmp_path / "nowhere")
    (folder / "part-000001.npz").unlink()
    with pytest.raises(ResultsError, match=r"run lacks parts of its \d+ records; run it again"):
        results.load(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(ResultsError, match=r"run holds an unfinished run; run it again to its end"):
        results.load(folder)

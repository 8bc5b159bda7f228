"""The embedded sample and models, through the real evaluation."""

import json

import numpy as np
import pytest
from PIL import Image

from dcls_jax.eval import demo


def test_sample_fits_in_the_package():
    records = sum(path.stat().st_size for path in demo.SAMPLE.glob("*.tfrecords"))
    assert records <= 3e6
    for name in demo.sample_models():
        assert sum(path.stat().st_size for path in (demo.SAMPLE / name).rglob("*") if path.is_file()) < 2e6


def test_trained_models_know_the_sample():
    for name in demo.NAMES:
        trained = json.loads((demo.SAMPLE / f"{name}.json").read_text())
        assert trained["held_out"]["accuracy"] > 0.9


@pytest.mark.long
def test_demo_writes_scores_and_pictures(tmp_path):
    results = demo.run(tmp_path, pictures=2)
    assert len(results) == 2 * 2 * 2  # models, methods, protocols
    for result in results:
        assert result.counted + sum(result.left_out.values()) == len(result.scores["spearman"])
        # Trained on the objects that the human heatmaps mark, both models look at them more than chance would.
        assert result.values["mean_spearman"] > 0.1
    with Image.open(tmp_path / "maps.png") as grid:
        assert np.asarray(grid).std() > 20
    assert "drawn sample" in (tmp_path / "report.html").read_text()
    again = demo.run(tmp_path, pictures=2)
    assert [r.values for r in again] == [r.values for r in results]

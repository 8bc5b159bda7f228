"""Localisation of a trained network's maps of real photographs, where `shared/real` is beside the checkout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcls_jax.eval import localisation
from dcls_jax.eval.data.imagenet import ImageNetFiles, read_annotations
from dcls_jax.eval.localisation.maps import enlarged
from dcls_jax.eval.localisation.points import peak
from tests.conftest import arrays_in

REAL = Path(__file__).parents[3] / "shared" / "real"

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/real beside the checkout")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((REAL / "expected.json").read_text())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, expected: dict[str, Any]) -> ImageNetFiles:
    texts = tmp_path_factory.mktemp("texts")
    rows: dict[str, list[tuple[Any, ...]]] = {"class_labels": [], "image_sizes": [], "localization": []}
    for image in expected["images"]:
        rows["class_labels"].append((image["file"], image["label"]))
        rows["image_sizes"].append((image["file"], *image["original_size_wh"]))
        rows["localization"] += [(image["file"], *box) for box in image["boxes_x0y0x1y1"]]
    for name, lines in rows.items():
        (texts / f"{name}.txt").write_text("".join(f"{','.join(map(str, line))}\n" for line in lines))
    return ImageNetFiles(REAL, read_annotations(texts))


def test_a_trained_network_points_at_real_objects(photographs: ImageNetFiles, expected: dict[str, Any]) -> None:
    maps = np.maximum(arrays_in(REAL / "expected.npz")["grad_cam"], 0)
    energies, hits = [], []
    for index, (map, row) in enumerate(zip(maps, expected["images"], strict=True)):
        sample = photographs[index]
        size = sample.image.shape[:2]
        assert (sample.name, sample.label, size) == (row["file"], row["label"], tuple(row["size_wh"][::-1]))
        assert sample.boxes.tolist() == row["boxes_in_file_x0y0x1y1"]
        mask = localisation.box_mask(sample.boxes, size)
        assert mask.mean() == pytest.approx(row["box_area"], abs=1e-6)
        energies.append(localisation.energy_inside(map, mask))
        hits.append(localisation.pointing_hit(map, mask))
        assert energies[-1] == pytest.approx(row["energy_in_boxes"], abs=1e-5)
        assert hits[-1] is row["pointing_hit"]
        x, y = row["point_xy"]
        found = peak(enlarged(map, size))
        assert (found.column, found.row) == (x, y)
    assert np.mean(energies) == pytest.approx(expected["summary"]["mean_energy_in_boxes"], abs=1e-5)
    assert f"{sum(hits)}/{len(hits)}" == expected["summary"]["pointing"]

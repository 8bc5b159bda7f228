"""Pictures of maps."""

import numpy as np
import pytest
from PIL import Image

from dcls_jax.cam import overlay, save_grid


def test_overlay_blends_map_and_picture():
    image = np.full((2, 2, 3), 100, np.uint8)
    heatmap = np.array([[0.0, 1.0], [0.5, 2.0]])
    blended = overlay(image, heatmap, alpha=0.5, colormap="gray")
    np.testing.assert_array_equal(blended[..., 0], [[50, 178], [114, 178]])
    np.testing.assert_array_equal(overlay(image, heatmap, alpha=0), image)


def test_overlay_refuses_other_sizes():
    with pytest.raises(ValueError, match="image has shape"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2)))


def test_grid_is_a_picture_and_leaves_nothing_beside_it(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    save_grid(tmp_path / "grid.png", [[picture, picture]] * 3, column_titles=["a", "b"], row_titles=["1", "2", "3"])
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[1] > 300
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]

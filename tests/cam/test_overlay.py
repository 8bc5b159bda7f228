"""Pictures of maps."""

import numpy as np
import pytest
from PIL import Image

from dcls_jax.cam import Grid, contour, overlay, overlay_signed, save_grid, show_maps


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def test_overlay_blends_map_and_picture():
    image = np.full((2, 2, 3), 100, np.uint8)
    heatmap = np.array([[0.0, 1.0], [0.5, 2.0]])
    blended = overlay(image, heatmap, alpha=0.5, colormap="gray")
    np.testing.assert_array_equal(blended[..., 0], [[50, 178], [114, 178]])
    np.testing.assert_array_equal(overlay(image, heatmap, alpha=0), image)


def test_signed_overlay_has_a_colour_per_sign_and_none_for_zero():
    image = np.broadcast_to(np.array([90, 60, 30], np.uint8), (1, 3, 3))
    against, neutral, speaks_for = overlay_signed(image, np.array([[-2.0, 0.0, 2.0]]), alpha=1)[0]
    np.testing.assert_array_equal([against, neutral, speaks_for], [[0, 0, 255], [60, 60, 60], [255, 0, 0]])
    np.testing.assert_array_equal(overlay_signed(image, np.zeros((1, 3))), np.full((1, 3, 3), 60))


def test_contour_lies_inside_the_region_and_not_on_the_pictures_edge():
    image, heatmap = np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6))
    heatmap[:4, 1:5] = 0.6
    line = contour(image, heatmap, levels=(0.5, 0.9), colour=(1, 2, 3), width=1)
    expected = np.array([[0, 1, 0, 0, 1, 0]] * 3 + [[0, 1, 1, 1, 1, 0], [0] * 6])
    np.testing.assert_array_equal(line, expected[..., None] * [1, 2, 3])
    assert contour(image, heatmap, width=2).any(-1).sum() == 16  # two from each side are the whole region
    np.testing.assert_array_equal(contour(image, np.zeros((5, 6))), image)


@pytest.mark.parametrize("draw", [overlay, overlay_signed, contour])
def test_other_sizes_are_refused(draw):
    with pytest.raises(ValueError, match="image has shape"):
        draw(np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2)))


def test_grid_is_a_picture_and_leaves_nothing_beside_it(tmp_path, picture):
    save_grid(tmp_path / "grid.png", [[picture, picture]] * 3, column_titles=["a", "b"], row_titles=["1", "2", "3"])
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[1] > 300
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_notebook_shows_a_grid_by_itself(picture):
    assert Grid([[picture]], ["a"])._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("style", ["heatmap", "signed", "contour"])
def test_grid_of_methods_and_images(picture, style):
    raw = np.random.default_rng(1).normal(size=(2, 4, 4)).astype(np.float32)
    grid = show_maps([picture, picture], {"one": raw, "none": -np.abs(raw), "flat": raw * 0 + 3}, style=style)
    assert list(grid.column_titles) == ["image", "one", "none", "flat"]
    assert [[cell.shape for cell in row] for row in grid.rows] == [[(16, 16, 3)] * 4] * 2
    silent = "" if style == "signed" else "nothing positive"
    assert [list(row) for row in grid.notes] == [["", "", silent, "constant"]] * 2
    assert grid.png().startswith(b"\x89PNG")


def test_maps_that_are_not_finite_are_called_so(picture):
    raw = np.full((1, 4, 4), np.nan, np.float32)
    grid = show_maps([picture], {"nan": raw})
    assert grid.notes[0][1] == "not finite"
    np.testing.assert_array_equal(grid.rows[0][1], overlay(picture, np.zeros((16, 16))))


@pytest.mark.parametrize(
    ("images", "maps", "style", "message"),
    [
        (2, np.zeros((1, 4, 4)), "heatmap", r"maps\['m'\] have shape \(1, 4, 4\), expected \(2, h, w\)"),
        (2, np.zeros((4, 4)), "heatmap", r"maps\['m'\] have shape \(4, 4\)"),
        (0, np.zeros((0, 4, 4)), "heatmap", "one image at least"),
        (1, np.zeros((1, 4, 4)), "bright", "style .* heatmap, signed, contour"),
    ],
)
def test_what_does_not_fit_a_grid_is_refused(picture, images, maps, style, message):
    with pytest.raises(ValueError, match=message):
        show_maps([picture] * images, {"m": maps}, style=style)

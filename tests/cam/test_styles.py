"""Maps on pictures, images x methods."""

import numpy as np
import pytest

from dcls_jax.cam import contour, overlay, overlay_signed, postprocess, show_maps

DRAW = {"heatmap": overlay, "signed": overlay_signed, "contour": contour}


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture
def raw():
    return np.random.default_rng(1).normal(size=(2, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("style", DRAW)
def test_grid_of_methods_and_images(picture, raw, style):
    grid = show_maps([picture, picture], {"one": raw, "none": -np.abs(raw), "flat": raw * 0 + 3}, style=style)
    assert list(grid.column_titles) == ["image", "one", "none", "flat"]
    assert [[cell.shape for cell in row] for row in grid.rows] == [[(16, 16, 3)] * 4] * 2
    silent = "" if style == "signed" else "nothing positive"
    assert [list(row) for row in grid.notes] == [["", "", silent, "constant"]] * 2
    np.testing.assert_array_equal(grid.rows[0][3], DRAW[style](picture, np.zeros((16, 16))))
    assert grid.png().startswith(b"\x89PNG")


def test_cells_are_overlays_of_postprocessed_maps(picture, raw):
    heatmap, signed = (show_maps([picture] * 2, {"m": raw}, style=style) for style in ("heatmap", "signed"))
    positive = np.asarray(postprocess(raw, size=16))
    np.testing.assert_allclose(heatmap.rows[1][1], overlay(picture, positive[1]).astype(int), atol=1)
    both = np.asarray(postprocess(raw, relu=False, normalise=False, size=16))
    np.testing.assert_allclose(signed.rows[1][1], overlay_signed(picture, both[1]).astype(int), atol=1)


def test_values_are_shares_of_the_maximum(picture):
    raw = np.full((1, 2, 2), 0.5)
    raw[0, 0, 0] = 1
    (row,) = show_maps([picture], raw).rows
    np.testing.assert_array_equal(row[1][-1, -1], overlay(picture, np.full((16, 16), 0.5))[-1, -1])


@pytest.mark.parametrize("style", DRAW)
def test_the_bar_shows_the_colours_of_the_pictures(style):
    options = {} if style == "contour" else {"alpha": 0.4, "colormap": "PiYG"}
    grey = np.full((64, 64), 128, np.uint8)
    ramp = np.broadcast_to(np.linspace(-1 if style == "signed" else 0, 1, 64), (64, 64))
    grid = show_maps([grey], {"ramp": ramp[None]}, style=style, **options)
    in_the_picture = {tuple(colour) for colour in grid.rows[0][1].reshape(-1, 3)}
    assert len(in_the_picture) == 3 if style == "contour" else len(in_the_picture) > 50
    in_the_bar = grid.bar.strip.reshape(-1, 3).astype(int)
    assert all(np.abs(in_the_bar - colour).max(-1).min() <= 1 for colour in in_the_picture)
    assert all(0 <= place <= 1 and text.endswith("%") for place, text in grid.bar.ticks.items())


def test_contours_of_two_levels_differ_and_the_bar_says_which_is_which(picture):
    grid = show_maps([picture], np.eye(4)[None], style="contour")
    for place, text, colour in ((0.5, "50 %", (255, 255, 0)), (0.8, "80 %", (255, 0, 0))):
        assert grid.bar.ticks[place] == text
        assert colour in {tuple(line) for line in grid.bar.strip[round(place * 255) :][:3, 0]}


def test_options_reach_the_pictures(picture, raw):
    grid = show_maps([picture] * 2, {"m": raw}, alpha=0.3, colormap="jet")
    for other in ({}, {"alpha": 0.3}, {"colormap": "jet"}):
        assert not np.array_equal(grid.rows[0][1], show_maps([picture] * 2, {"m": raw}, **other).rows[0][1])
    none = show_maps([picture] * 2, {"m": raw}, alpha=0)
    np.testing.assert_array_equal(none.rows[0][1], picture)


def test_pictures_of_every_kind_are_shown(picture, raw):
    expected = show_maps([picture[..., 0]] * 2, {"m": raw}).rows
    for image in (picture[..., :1], picture[..., 0] / 255, np.repeat(picture[..., :1], 3, -1)):
        np.testing.assert_array_equal(show_maps([image] * 2, {"m": raw}).rows, expected)


def test_an_array_of_maps_is_a_column(picture, raw):
    grid = show_maps([picture, picture], raw)
    assert list(grid.column_titles) == ["image", "map"]
    np.testing.assert_array_equal(grid.rows, show_maps([picture, picture], {"map": raw}).rows)


@pytest.mark.parametrize("style", DRAW)
def test_maps_that_are_not_finite_are_called_so(picture, raw, style):
    raw = np.concatenate([raw, np.full((1, 4, 4), np.nan, np.float32)])
    grid = show_maps([picture] * 3, {"m": raw}, style=style)
    assert [note for _, note in grid.notes] == ["", "", "not finite"]
    np.testing.assert_array_equal(grid.rows[2][1], DRAW[style](picture, np.zeros((16, 16))))
    np.testing.assert_array_equal(
        [row[1] for row in grid.rows[:2]], [r[1] for r in show_maps([picture] * 2, raw[:2], style=style).rows]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("style", DRAW)
def test_a_cell_that_is_not_finite_is_as_if_absent(picture, style, value):
    raw = np.full((1, 4, 4), 2.0)
    raw[0, :, 3] = 1
    raw[0, 1, 0] = value
    grid = show_maps([picture], {"m": raw}, style=style)
    assert grid.notes[0][1] == "not finite"
    shown = grid.rows[0][1]
    absent = np.zeros((16, 16), bool)
    absent[4:8, :4] = True
    nothing, whole = (DRAW[style](picture, np.full((16, 16), share)) for share in (0.0, 1.0))
    np.testing.assert_array_equal(shown[absent], nothing[absent])
    around = np.zeros((16, 16), bool)
    around[:, :8] = True  # beside its neighbours of equal value, and far from the others
    np.testing.assert_array_equal(shown[around & ~absent], whole[around & ~absent])


@pytest.mark.parametrize(
    ("images", "maps", "options", "message"),
    [
        (2, np.zeros((1, 4, 4)), {}, r"maps\['m'\] have shape \(1, 4, 4\), expected \(2, h, w\)"),
        (2, np.zeros((4, 4)), {}, r"maps\['m'\] have shape \(4, 4\)"),
        (1, np.zeros((1, 0, 4)), {}, r"maps\['m'\] have shape \(1, 0, 4\)"),
        (0, np.zeros((0, 4, 4)), {}, "one image at least"),
        (1, np.zeros((1, 4, 4)), {"style": "bright"}, "style .* heatmap, signed, contour"),
        (1, np.zeros((1, 4, 4)), {"alpha": 2}, r"alpha \(=2\) must be in \[0, 1\]"),
        (1, np.zeros((1, 4, 4)), {"colormap": "plasm"}, r"colormap \(='plasm'\) .* nearest are plasma"),
        (
            1,
            np.zeros((1, 4, 4)),
            {"style": "contour", "alpha": 1},
            r"alpha \(=1\) is for the styles heatmap and signed",
        ),
        (1, np.zeros((1, 4, 4)), {"style": "contour", "colormap": "jet"}, r"colormap \(='jet'\) is for the styles"),
        (1, np.zeros((1, 4, 4)), {"row_titles": ["a", "b"]}, "row_titles are 2"),
    ],
)
def test_what_does_not_fit_a_grid_is_refused(picture, images, maps, options, message):
    with pytest.raises(ValueError, match=message):
        show_maps([picture] * images, {"m": maps}, **options)


def test_images_that_do_not_fit_are_refused_by_number(picture):
    with pytest.raises(ValueError, match=r"images have sizes \[\(8, 16\), \(16, 16\)\], .* all of one size"):
        show_maps([picture, picture[:8]], np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match=r"images\[1\] has floats from 2 to 2"):
        show_maps([picture, np.full((16, 16), 2.0)], np.zeros((2, 4, 4)))

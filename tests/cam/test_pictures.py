"""One map over one picture."""

import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam import contour, overlay, overlay_signed

DRAW = [overlay, overlay_signed, contour]


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture
def heatmap():
    return np.random.default_rng(1).uniform(size=(16, 16))


def test_overlay_is_the_more_opaque_the_higher_the_value():
    image = np.full((2, 2, 3), 100, np.uint8)
    heatmap = np.array([[0.0, 1.0], [0.5, 2.0]])
    blended = overlay(image, heatmap, alpha=0.5, colormap="gray")
    np.testing.assert_array_equal(blended[..., 0], [[100, 178], [107, 178]])
    np.testing.assert_array_equal(overlay(image, heatmap, alpha=0), image)
    np.testing.assert_array_equal(overlay(image, np.ones((2, 2)), alpha=1, colormap="jet")[0, 0], [128, 0, 0])


def test_signed_overlay_has_a_colour_per_sign_and_none_for_zero():
    image = np.broadcast_to(np.array([90, 60, 30], np.uint8), (1, 5, 3))
    shown = overlay_signed(image, np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]), alpha=1)[0]
    np.testing.assert_array_equal(shown, [[0, 0, 255], [30, 30, 158], [60, 60, 60], [158, 30, 30], [255, 0, 0]])
    np.testing.assert_array_equal(overlay_signed(image, np.zeros((1, 5))), np.full((1, 5, 3), 60))


def test_contour_lies_inside_the_region_and_not_on_the_pictures_edge():
    image, heatmap = np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6))
    heatmap[:4, 1:5] = 0.6
    line = contour(image, heatmap, levels=(0.5, 0.9), colour=(1, 2, 3), width=1)
    expected = np.array([[0, 1, 0, 0, 1, 0]] * 3 + [[0, 1, 1, 1, 1, 0], [0] * 6])
    np.testing.assert_array_equal(line, expected[..., None] * [1, 2, 3])
    assert contour(image, heatmap, width=2).any(-1).sum() == 16  # two from each side are the whole region
    np.testing.assert_array_equal(contour(image, np.zeros((5, 6))), image)


def test_each_level_has_its_line():
    heatmap = np.broadcast_to(np.linspace(0, 1, 11), (4, 11))
    black = np.zeros((4, 11, 3), np.uint8)
    for levels in ((0.45, 0.75), (0.75, 0.45)):
        line = contour(black, heatmap, levels=levels, width=1)[0]
        assert {place: tuple(line[place]) for place in np.flatnonzero(line.any(-1))} == {
            5: (255, 255, 0),
            8: (255, 0, 0),
        }
    line = contour(black, heatmap, levels=(0.45, 0.75), colour=[(1, 1, 1), (2, 2, 2)], width=1)[0]
    assert (line[5, 0], line[8, 0]) == (1, 2)


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_floats_are_drawn_as_uint8_is(draw, dtype, picture, heatmap):
    black_or_white = picture // 128
    expected = draw(black_or_white * np.uint8(255), heatmap)
    np.testing.assert_array_equal(draw(black_or_white.astype(dtype), heatmap), expected)
    if dtype == np.float64:
        np.testing.assert_array_equal(draw(picture / 255, heatmap), draw(picture, heatmap))


@pytest.mark.parametrize("draw", DRAW)
def test_grey_pictures_are_shown_in_grey(draw, picture, heatmap):
    grey = picture[..., 0]
    expected = draw(np.repeat(grey[..., None], 3, -1), heatmap)
    np.testing.assert_array_equal(draw(grey, heatmap), expected)
    np.testing.assert_array_equal(draw(grey[..., None] / 255, heatmap), expected)


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((2, 2, 3), -0.5), r"image has floats from -0.5 to -0.5, expected uint8, or floats in \[0, 1\]"),
        (np.full((2, 2, 3), 255.0, np.float32), "image has floats from 255 to 255"),
        (np.full((2, 2, 3), np.nan), "image has floats from nan to nan"),
        (np.zeros((2, 2, 3), np.int32), "image has dtype int32, expected uint8"),
        (np.zeros((2, 2, 3), bool), "image has dtype bool"),
        (np.zeros((3, 2, 2), np.uint8), r"image has shape \(3, 2, 2\), expected \(H, W, 3\), \(H, W, 1\) or \(H, W\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"image has shape \(1, 2, 2, 3\)"),
        (np.zeros((0, 2, 3), np.uint8), r"image has shape \(0, 2, 3\)"),
        (np.zeros((2, 3, 3), np.uint8), r"image has shape \(2, 3, 3\), expected the size of \w+, \(2, 2\)"),
    ],
)
def test_other_pictures_are_refused(draw, image, message):
    with pytest.raises(ValueError, match=message) as error:
        draw(image, np.zeros((2, 2)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("draw", "name"), [*zip(DRAW, ("heatmap", "values", "heatmap"), strict=True)])
def test_maps_of_other_shapes_are_refused(draw, name, picture):
    with pytest.raises(ValueError, match=rf"{name} has shape \(1, 16, 16\), expected \(H, W\)"):
        draw(picture, np.zeros((1, 16, 16)))


@pytest.mark.parametrize(
    ("draw", "options", "message"),
    [
        (overlay, {"alpha": 1.5}, r"alpha \(=1.5\) must be in \[0, 1\]"),
        (overlay, {"alpha": np.nan}, r"alpha \(=nan\) must be in \[0, 1\]"),
        (overlay_signed, {"alpha": -1}, r"alpha \(=-1\)"),
        (overlay, {"colormap": "jett"}, r"colormap \(='jett'\) is not one of matplotlib's; the nearest are jet,"),
        (overlay_signed, {"colormap": ""}, r"colormap \(=''\)"),
        (contour, {"levels": (0.5, 80)}, r"levels \(=\(0.5, 80\)\) must be in \[0, 1\], one at least"),
        (contour, {"levels": (np.nan,)}, r"levels \(=\(nan,\)\)"),
        (contour, {"levels": ()}, r"levels \(=\(\)\)"),
        (contour, {"width": 0}, r"width \(=0\) must be a whole number of pixels, from 1 to the picture's side, 16"),
        (contour, {"width": 1.5}, r"width \(=1.5\)"),
        (contour, {"width": 10**9}, r"width \(=1000000000\)"),
        (contour, {"colour": (0, 0, 256)}, r"colour \(=\(0, 0, 256\)\) must be three whole numbers from 0 to 255"),
        (contour, {"colour": (0.5, 0, 0)}, "colour"),
        (contour, {"colour": (-1, 0, 0)}, "colour"),
        (contour, {"colour": [(0, 0, 0)] * 3}, "or such three for each level"),
    ],
)
def test_options_outside_their_range_are_refused(draw, options, message, picture, heatmap):
    with pytest.raises(ValueError, match=message) as error:
        draw(picture, heatmap, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("draw", DRAW)
def test_one_value_that_is_not_finite_spoils_no_other(draw, value, picture):
    heatmap = np.zeros((16, 16))
    heatmap[4:12, 4:12] = np.linspace(0.6, 1, 8)
    damaged = heatmap.copy()
    damaged[2, 2] = damaged[8, 8] = value
    shown, expected = draw(picture, damaged), draw(picture, heatmap)
    absent = damaged != heatmap
    np.testing.assert_array_equal(shown[~absent], expected[~absent])
    np.testing.assert_array_equal(shown[absent], draw(picture, np.zeros((16, 16)))[absent])

"""Boxes, MaxBoxAcc, MaxBoxAccV2 and PxAP: the values of clovaai/wsolevaluation's tests, and its loops written anew."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from dcls_jax.eval import localisation
from dcls_jax.eval.localisation import BOX_PRESETS, box_overlaps
from dcls_jax.eval.localisation.maps import enlarged, presented
from dcls_jax.eval.status import Status

UNIMODAL = [[0, 0, 0, 0, 0], [0, 0.4, 0.4, 0.4, 0.6], [0, 0.4, 1, 0.8, 0.6], [0, 0.4, 0.4, 0.4, 0.6]]
MULTIMODAL = [[0.4, 0, 0.2, 0.2, 0.2], [0.4, 0.4, 0, 0.4, 0], [0, 0, 0, 0.4, 0], [1, 0.6, 0.8, 0.2, 0.2]]
RING = np.pad(np.ones((3, 3)), 2)
RING[3, 3] = 0


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def smooth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A map of a few blobs, or of noise, in [0, 1]."""
    height, width = size
    cells = rng.random((rng.integers(1, height + 1), rng.integers(1, width + 1)))
    return presented(cells, size)


# boxes


@pytest.mark.parametrize(
    ("map", "expected"),
    [
        (UNIMODAL, [[1, 1, 4, 3], [1, 1, 4, 3], [2, 1, 4, 3], [2, 2, 4, 3], [2, 2, 3, 3]]),
        (MULTIMODAL, [[0, 0, 4, 3], [0, 0, 2, 2], [0, 3, 3, 3], [2, 3, 3, 3], [0, 3, 1, 3]]),
        (np.zeros((3, 3)), [[0, 0, 0, 0]] * 5),
    ],
)
def test_boxes_of_the_originals_tests(map: np.ndarray, expected: list[list[int]]) -> None:
    found = [localisation.boxes(map, threshold, largest=True) for threshold in np.arange(0, 1, 0.2)]
    assert [boxes.tolist() for boxes in found] == [[box] for box in expected]
    assert found[0].dtype.kind == "i"


def test_boxes_of_what_is_above_everywhere() -> None:
    for largest in (True, False):
        assert localisation.boxes(np.full((3, 4), 0.5), 0, largest=largest).tolist() == [[0, 0, 3, 2]]
        assert localisation.boxes(np.full((3, 4), 0.5), 1, largest=largest).tolist() == [[0, 0, 0, 0]]


def test_boxes_of_every_outline_with_holes() -> None:
    found = localisation.boxes(RING, 0.5, largest=False)
    assert found.tolist() == [[2, 2, 5, 5], [2, 2, 5, 5]]  # without and within: the hole's has a pixel around it
    assert localisation.boxes(RING, 0.5, largest=True).tolist() == [[2, 2, 5, 5]]
    wide = np.pad(np.ones((6, 7)), 1)
    wide[2:5, 3:6] = 0
    wide[3, 4] = 1  # alone in the hole
    assert sorted(localisation.boxes(wide, 0, largest=False).tolist()) == [[1, 1, 8, 7], [2, 1, 7, 6], [4, 3, 5, 4]]


def test_the_largest_outline_is_of_the_largest_area_not_of_the_most_pixels() -> None:
    map = np.zeros((6, 20))
    map[0, :] = 1  # a line has no area
    map[3:6, 3:6] = 1
    assert localisation.boxes(map, 0, largest=True).tolist() == [[3, 3, 6, 5]]
    map[3:6, 10:13] = RING[2:5, 2:5]  # of the same area, for its hole is filled; begins later on the same row
    assert localisation.boxes(map, 0, largest=True).tolist() == [[10, 3, 13, 5]]


def flood(above: np.ndarray, neighbours: int) -> list[set[tuple[int, int]]]:
    """Components, by following neighbours."""
    left, components = set(zip(*np.nonzero(above), strict=True)), []
    while left:
        component, border = set(), [left.pop()]
        while border:
            y, x = border.pop()
            component.add((y, x))
            steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if neighbours == 8 or not dy * dx]
            new = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= new
            border += new
        components.append(component)
    return components


def test_boxes_equal_components_that_are_flooded(rng: np.random.Generator) -> None:
    holes = 0
    for _ in range(40):
        values = smooth(rng, (12, 15))
        threshold = rng.random() * 0.9
        levels = (values * 255).astype(int)
        above = levels > int(threshold * levels.max())
        inner = [hole for hole in flood(np.pad(~above, 1, constant_values=True), 4) if (0, 0) not in hole]
        outlines = flood(above, 8) + [{(y - 1 + d, x - 1 + d) for y, x in hole for d in (-1, 1)} for hole in inner]
        expected = [
            (min(x), min(y), min(max(x) + 1, 14), min(max(y) + 1, 11))
            for y, x in (zip(*outline, strict=True) for outline in outlines)
        ]
        found = localisation.boxes(values, threshold, largest=False)
        assert sorted(map(tuple, found.tolist())) == sorted(expected or [(0, 0, 0, 0)])
        holes += len(inner)
    assert holes > 10


def test_overlaps_are_counted_in_pixels() -> None:
    assert box_overlaps([[1, 2, 5, 6]], [[3, 1, 4, 5]]) == pytest.approx(8 / 27)
    np.testing.assert_array_equal(box_overlaps(np.zeros((3, 4)), np.zeros((5, 4))), np.ones((3, 5)))
    eye = [[1, 1, 3, 3], [4, 4, 5, 5]]
    np.testing.assert_array_equal(box_overlaps(eye, eye), np.eye(2))


# accuracy


def accuracy_by_threshold(maps: np.ndarray, truth: list[np.ndarray], largest: bool, overlaps: list[float]) -> float:
    """Every threshold, map and box in turn."""
    right = np.zeros((len(overlaps), 1000))
    for map, gold in zip(maps, truth, strict=True):
        shown, best = presented(map), {}
        for k, threshold in enumerate(np.arange(0, 1, 0.001)):
            level = int(threshold * 255)  # below which thresholds do not differ
            if level not in best:
                found = localisation.boxes(shown, threshold, largest=largest)
                best[level] = max(overlap(a, b) for a in found.tolist() for b in gold.tolist())
            right[:, k] += [best[level] >= enough for enough in overlaps]
    return float(np.mean(right.max(1) / len(maps)))


@cache
def pixels(x0: int, y0: int, x1: int, y1: int) -> frozenset[tuple[int, int]]:
    return frozenset((x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1))


def overlap(a: list[int], b: list[int]) -> float:
    of_a, of_b = pixels(*a), pixels(*b)
    return len(of_a & of_b) / len(of_a | of_b)


@pytest.mark.parametrize(
    ("preset", "largest", "overlaps"), [("wsol", False, [0.3, 0.5, 0.7]), ("wsol_v1", True, [0.5])]
)
def test_accuracy_equals_a_loop_over_thresholds(
    rng: np.random.Generator, preset: str, largest: bool, overlaps: list[float]
) -> None:
    maps = np.stack([smooth(rng, (8, 9)) for _ in range(4)]) - 3
    truth = [
        np.array([[1, 0, 5, 6]]),
        np.array([[0, 0, 2, 2], [4, 4, 8, 7]]),
        np.array([[3, 2, 6, 6]]),
        np.array([[2, 2, 3, 7]]),
    ]
    expected = accuracy_by_threshold(maps, truth, largest, overlaps)
    assert 0 < expected < 1
    assert localisation.box_accuracy(maps, truth, preset=preset) == pytest.approx(expected)


def test_one_threshold_serves_all_maps() -> None:
    map = np.zeros((10, 10))
    map[1:9, 1:9], map[4:6, 4:6] = 0.5, 1
    small, large = np.array([[4, 4, 6, 6]]), np.array([[1, 1, 9, 9]])
    for truth in (small, large):
        assert localisation.box_accuracy(map[None], [truth]) == 1
    assert localisation.box_accuracy(np.stack([map, map]), [small, large]) == 0.5
    assert localisation.box_accuracy(map[None], [np.concatenate([small, large])]) == 1


def test_constant_maps_count_as_zeros(rng: np.random.Generator) -> None:
    map = np.zeros((10, 10))
    map[1:9, 1:9] = 1
    truth = np.array([[1, 1, 9, 9]])
    assert localisation.box_accuracy(np.stack([map, map * 0 + 3]), [truth, truth]) == 0.5
    assert localisation.box_accuracy(map[None] * 0, [np.array([[0, 0, 0, 0]])]) == 1


def test_maps_are_enlarged_to_a_size(rng: np.random.Generator) -> None:
    maps, truth = rng.random((2, 7, 7)), [np.array([[10, 20, 100, 130]])] * 2
    large = np.stack([enlarged(map, (224, 224), "cubic") for map in maps])
    for preset in BOX_PRESETS:
        expected = localisation.box_accuracy(large, truth, preset=preset)
        assert localisation.box_accuracy(maps, truth, preset=preset, size=(224, 224)) == expected


@pytest.mark.parametrize(("preset", "level", "found"), [("cam", 0.19, 0), ("cam", 0.22, 1), ("grad_cam", 0.19, 1)])
def test_top_1_localisation_cuts_at_a_fixed_threshold(preset: str, level: float, found: float) -> None:
    map = np.zeros((10, 10))
    map[1:9, 1:9], map[4:6, 4:6] = level, 1
    truth = [np.array([[1, 1, 9, 9]])]
    assert localisation.box_accuracy(map[None], truth, preset=preset) == found
    assert localisation.box_accuracy(map[None], truth, preset=preset, right=[False]) == 0
    twice = np.stack([map, map])
    assert localisation.box_accuracy(twice, truth * 2, preset=preset, right=[True, False]) == found / 2


def test_scores_of_one_map_say_what_is_dead_and_what_has_no_boxes(rng: np.random.Generator) -> None:
    preset, truth = BOX_PRESETS["wsol"], [[0, 0, 6, 7]]
    map = smooth(rng, (8, 9))
    alive = localisation.box_scores(map, truth, preset)
    np.testing.assert_array_equal(alive.values["overlap"], localisation.best_overlaps(map, truth, preset))
    assert (alive.values["dead"], alive.status) == (0, Status.COUNTED.code)
    for dead in (map * 0 + 3, np.where(map == map[0, 0], np.nan, map)):
        scores = localisation.box_scores(dead, truth, preset)
        assert (scores.values["dead"], scores.status) == (1, Status.COUNTED.code)
        np.testing.assert_array_equal(scores.values["overlap"], np.full(1000, 1 / 56))  # of the box 0, 0, 0, 0
    nothing = localisation.box_scores(map, np.zeros((0, 4)), preset)
    assert nothing.status == Status.EMPTY.code
    assert np.isnan(nothing.values["overlap"]).all()
    assert nothing.values["overlap"].shape == (1000,)


# pixels


@pytest.mark.parametrize(("inside", "counted"), [(43031, 50176), (833, 50175), (347, 14256)])
@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_constant_maps_have_the_share_of_the_foreground(inside: int, counted: int, value: float) -> None:
    mask, ignore = (np.zeros(50176, bool) for _ in range(2))
    mask[:inside], ignore[counted:] = True, True
    shaped = [x.reshape(1, 224, 224) for x in (mask, ignore)]
    found = localisation.pixel_average_precision(np.full((1, 224, 224), value), *shaped)
    assert found == pytest.approx(inside / counted, rel=1e-12)


def test_a_perfect_map_has_full_precision(rng: np.random.Generator) -> None:
    masks, ignore = rng.random((2, 3, 20, 30)) < 0.3
    ignore &= ~masks
    for value in (0, 1):  # of what is ignored
        maps = np.where(ignore, value, masks).astype(float)
        assert localisation.pixel_average_precision(maps, masks, ignore) == 1


def test_pixels_equal_a_loop_over_bins(rng: np.random.Generator) -> None:
    maps, masks = rng.random((3, 20, 30)), rng.random((3, 20, 30)) < 0.3
    ignore = (rng.random((3, 20, 30)) < 0.1) & ~masks
    values = np.stack([presented(map) for map in maps])
    area, recall_before = 0.0, 0.0
    for edge in [1.0, *np.arange(0, 1, 0.001)[::-1]]:
        found = (values >= edge) & ~ignore
        hits = (found & masks).sum()
        area += hits / max(found.sum(), 1) * (hits / masks.sum() - recall_before)
        recall_before = hits / masks.sum()
    assert localisation.pixel_average_precision(maps, masks, ignore) == pytest.approx(area, rel=1e-12)
    small = rng.random((3, 5, 5))
    large = np.stack([enlarged(map, (20, 30), "cubic") for map in small])
    expected = localisation.pixel_average_precision(large, masks)
    assert localisation.pixel_average_precision(small, masks) == expected


# what is wrong

MAPS = np.random.default_rng(0).random((2, 5, 5))
HOLED = np.where(MAPS[1, 2, 2] == MAPS, np.nan, MAPS)
BOX = np.array([[0, 0, 3, 3]])

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "range": (
        lambda: localisation.boxes(MAPS[0] * 2, 0.5, largest=True),
        r"map has values from .* to 1\.\d*, expected them within \[0, 1\]",
    ),
    "NaN": (lambda: localisation.boxes(HOLED[1], 0.5, largest=True), "map has 1 values that are not finite"),
    "threshold": (
        lambda: localisation.boxes(MAPS[0], 20, largest=True),
        r"threshold \(=20\) must be from 0 to 1",
    ),
    "NaN of many": (
        lambda: localisation.box_accuracy(HOLED, [BOX, BOX]),
        "maps hold values that are not finite, the first in map 1 of 2",
    ),
    "batch": (
        lambda: localisation.box_accuracy(MAPS, [BOX]),
        "boxes are of 1 pictures and maps of 2, expected as many of both",
    ),
    "one map": (
        lambda: localisation.box_accuracy(MAPS[0], [BOX]),
        r"maps have shape \(5, 5\), expected \(B, h, w\)",
    ),
    "preset": (
        lambda: localisation.box_accuracy(MAPS, [BOX, BOX], preset="wsol_v2"),
        r"preset \(='wsol_v2'\) must be one of wsol, wsol_v1, cam, grad_cam",
    ),
    "no boxes": (
        lambda: localisation.box_accuracy(MAPS, [BOX, np.zeros((0, 4))]),
        r"boxes of a map have shape \(0, 4\), expected \(k, 4\)",
    ),
    "order": (
        lambda: localisation.box_accuracy(MAPS, [BOX, BOX[:, ::-1]]),
        r"boxes of a map are \[\[3, 3, 0, 0\]\], expected x0, y0, x1, y1 with x0 <= x1 and y0 <= y1",
    ),
    "right": (
        lambda: localisation.box_accuracy(MAPS, [BOX, BOX], right=[True]),
        r"right has shape \(1,\), expected \(2,\)",
    ),
    "masks": (
        lambda: localisation.pixel_average_precision(MAPS, MAPS[:1] > 0.5),
        r"masks have shape \(1, 5, 5\) and ignore \(1, 5, 5\), expected both \(2, H, W\) for 2 maps",
    ),
    "no foreground": (
        lambda: localisation.pixel_average_precision(MAPS, MAPS > 2),
        "masks are empty, expected at least one pixel inside",
    ),
    "NaN of pixels": (lambda: localisation.pixel_average_precision(HOLED, MAPS > 0.5), "the first in map 1 of 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()

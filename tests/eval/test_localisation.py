"""Maps against masks: hand-made values, loops written out, and the rules of the published protocols."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import numpy as np
import pytest

from dcls_jax.eval import localisation
from dcls_jax.eval.localisation import BOX_PRESETS, INSIDE_PRESETS, MASK_PRESETS, POINTING_PRESETS, Region, box_mask
from dcls_jax.eval.localisation.maps import enlarged
from dcls_jax.eval.status import Status
from dcls_jax.models import Transform


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def one_at(row: int, column: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[row, column] = True
    return mask


def quadrant(row: int, column: int) -> np.ndarray:
    mask = np.zeros((224, 224), bool)
    mask[row * 112 :][:112, column * 112 :][:, :112] = True
    return mask


def bilinear(map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel centres, pixel by pixel."""
    old_height, old_width = map.shape
    result = np.zeros(size)
    for row, column in itertools.product(*map_ranges(size)):
        y = min(max((row + 0.5) * old_height / size[0] - 0.5, 0), old_height - 1)
        x = min(max((column + 0.5) * old_width / size[1] - 0.5, 0), old_width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, old_height - 1), min(left + 1, old_width - 1)
        upper = map[top, left] * (1 - (x - left)) + map[top, right] * (x - left)
        lower = map[bottom, left] * (1 - (x - left)) + map[bottom, right] * (x - left)
        result[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return result


def map_ranges(size: tuple[int, int]) -> tuple[range, range]:
    return range(size[0]), range(size[1])


# the functions of arrays


@pytest.mark.parametrize(
    ("row", "column", "hit"),
    [(40, 50, True), (40, 64, True), (40, 65, False), (54, 50, True), (31, 62, False), (31, 61, True), (25, 50, False)],
)
def test_pointing_is_strictly_within_15_pixels(row: int, column: int, hit: bool) -> None:
    map = one_at(40, 50).astype(np.float32)
    assert localisation.pointing_hit(map, one_at(row, column)) is hit


def test_pointing_by_another_tolerance() -> None:
    map = one_at(40, 50).astype(float)
    assert localisation.pointing_hit(map, one_at(40, 50), tolerance=1)
    assert not localisation.pointing_hit(map, one_at(40, 51), tolerance=1)
    assert localisation.pointing_hit(map, one_at(40, 51), tolerance=1.5)


def test_pointing_equals_a_loop_over_all_pixels(rng: np.random.Generator) -> None:
    outcomes = set()
    for _ in range(40):
        map, mask = rng.standard_normal((5, 7)), rng.random((40, 55)) < 0.002
        mask[0, 0] |= not mask.any()
        large = bilinear(map, mask.shape)
        best = max(itertools.product(*map_ranges(mask.shape)), key=lambda at: large[at])
        expected = any((y - best[0]) ** 2 + (x - best[1]) ** 2 < 225 for y, x in zip(*np.nonzero(mask), strict=True))
        assert localisation.pointing_hit(map, mask) is expected
        outcomes.add(expected)
    assert outcomes == {True, False}


def test_the_first_of_equal_pixels_is_meant_and_plateaus_are_flat(rng: np.random.Generator) -> None:
    for size in ((333, 500), (500, 375), (224, 224), (97, 31)):
        map = rng.uniform(-1, 1, (7, 7))
        map[6, 3] = 2  # its centre is a row's only peak, which goes on to the border
        large = enlarged(map, size)
        rows, columns = np.nonzero(large == large.max())
        half_a_cell = size[0] - int(np.ceil(6.5 / 7 * size[0] - 0.5))
        assert len(set(rows)) == half_a_cell
        assert len(set(columns)) * half_a_cell == len(rows)
        assert np.unravel_index(large.argmax(), size) == (rows.min(), columns.min())


def test_quantus_values() -> None:
    """Quantus' tests, opposite and same quadrants."""
    map = quadrant(0, 0).astype(np.float32)
    half = np.zeros((224, 224), bool)
    half[:56, :112] = half[112:168, :112] = True  # as many pixels as the quadrant
    assert localisation.energy_inside(map, quadrant(0, 0)) == 1
    assert localisation.energy_inside(map, quadrant(1, 1)) == 0
    assert localisation.energy_inside(map, half) == pytest.approx(0.5)
    assert localisation.top_n_inside(map, half) == pytest.approx(0.5)
    assert localisation.top_n_inside(map, quadrant(1, 1)) == 0


def test_energy_equals_a_loop(rng: np.random.Generator) -> None:
    map, mask = rng.random((5, 7)), rng.random((23, 31)) < 0.3
    large = bilinear(map, mask.shape)
    inside = sum(large[at] for at in itertools.product(*map_ranges(mask.shape)) if mask[at])
    assert localisation.energy_inside(map, mask) == pytest.approx(inside / large.sum(), rel=1e-12)
    assert localisation.energy_inside(map.astype(np.float32), mask) == pytest.approx(inside / large.sum(), rel=1e-6)


def test_top_n_equals_a_sort(rng: np.random.Generator) -> None:
    map, mask = rng.random((5, 7)), rng.random((23, 31)) < 0.3
    large = bilinear(map, mask.shape)
    places = sorted(itertools.product(*map_ranges(mask.shape)), key=lambda at: -large[at])
    expected = np.mean([mask[at] for at in places[: mask.sum()]])
    assert localisation.top_n_inside(map, mask) == pytest.approx(expected)


def test_top_n_of_equal_pixels_is_the_mean_over_all_choices() -> None:
    map = np.array([[3.0, 1, 1], [1, 0, 0]])
    mask = np.array([[1, 1, 0], [0, 0, 1]], bool)
    equal = [(0, 1), (0, 2), (1, 0)]
    choices = [[(0, 0), *two] for two in itertools.combinations(equal, 2)]
    expected = np.mean([np.mean([mask[at] for at in choice]) for choice in choices])
    assert localisation.top_n_inside(map, mask) == pytest.approx(expected)
    for turn in (np.flipud, np.fliplr):
        assert localisation.top_n_inside(turn(map), turn(mask)) == pytest.approx(expected)


def test_top_overlap_is_harmonizations(rng: np.random.Generator) -> None:
    a, b = (rng.random((6, 64, 64)).astype(np.float32) for _ in range(2))
    b[:3] = (a[:3] + b[:3]) / 2
    b[5] = np.maximum(b[5], np.float32(0.95))  # more than nine tenths are equal
    result = jax.jit(jax.vmap(localisation.top_overlap))(a, b)
    for i in range(6):
        high_a, high_b = (x > np.percentile(x, 90) for x in (a[i], b[i]))
        iou = (high_a & high_b).sum() / (high_a | high_b).sum()
        assert result["iou"][i] == pytest.approx(iou, rel=1e-6)
        assert result["dice"][i] == pytest.approx(2 * iou / (1 + iou), rel=1e-6)
    same = localisation.top_overlap(a[0], a[0])
    opposite = localisation.top_overlap(a[0], 1 - a[0])
    assert (same["iou"], same["dice"], opposite["iou"], opposite["dice"]) == (1, 1, 0, 0)


@pytest.mark.parametrize("size", [2, 3, 10, 11, 12, 21, 31, 101])
def test_top_overlap_cuts_where_numpys_percentile_does(size: int, rng: np.random.Generator) -> None:
    a, b = (rng.permutation(size).astype(float) for _ in range(2))
    high_a, high_b = (x > np.percentile(x, 90) for x in (a, b))
    expected = (high_a & high_b).sum() / (high_a | high_b).sum()
    assert localisation.top_overlap(a[None], b[None])["iou"] == pytest.approx(expected)


def test_top_overlap_of_dead_maps_is_nan(rng: np.random.Generator) -> None:
    map = rng.random((8, 8))
    holed = np.where(map == map[0, 0], np.nan, map)
    for dead in (np.zeros((8, 8)), holed):
        for pair in ((map, dead), (dead, map)):
            assert all(np.isnan(value) for value in localisation.top_overlap(*pair).values())


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "empty mask": (
        lambda: localisation.pointing_hit(np.ones((7, 7)), np.zeros((9, 9), bool)),
        r"mask of shape \(9, 9\) is empty, expected at least one pixel inside",
    ),
    "empty mask of energy": (lambda: localisation.energy_inside(np.ones((2, 2)), np.zeros((2, 2), bool)), "is empty"),
    "empty mask of top n": (lambda: localisation.top_n_inside(np.ones((2, 2)), np.zeros((2, 2), bool)), "is empty"),
    "NaN": (
        lambda: localisation.energy_inside(np.array([[0, np.nan]]), np.ones((2, 2), bool)),
        "map has 1 values that are not finite",
    ),
    "batch": (
        lambda: localisation.top_n_inside(np.ones((1, 7, 7)), np.ones((9, 9), bool)),
        r"map has shape \(1, 7, 7\), expected \(h, w\)",
    ),
    "mask's shape": (lambda: localisation.pointing_hit(np.ones((7, 7)), np.ones(9, bool)), r"mask has shape \(9,\)"),
    "mask's values": (
        lambda: localisation.pointing_hit(np.ones((7, 7)), np.full((9, 9), 255, np.uint8)),
        "mask has values of dtype uint8 other than 0 and 1, expected bool",
    ),
    "no energy": (
        lambda: localisation.energy_inside(np.zeros((7, 7)), np.ones((9, 9), bool)),
        "map adds up to 0, so that no share of it is inside the mask",
    ),
    "tolerance": (
        lambda: localisation.pointing_hit(np.ones((7, 7)), np.ones((9, 9), bool), tolerance=0),
        r"tolerance \(=0\) must be positive",
    ),
    "share": (
        lambda: localisation.top_overlap(np.ones((7, 7)), np.ones((7, 7)), share=10),
        r"share \(=10\) must be between 0 and 1",
    ),
    "two shapes": (
        lambda: localisation.top_overlap(np.ones((7, 7)), np.ones((8, 8))),
        r"top_overlap compares maps of one shape, got \(7, 7\) and \(8, 8\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


# regions


def test_boxes_take_in_both_ends() -> None:
    mask = box_mask(np.array([[1, 0, 2, 1], [2, 1, 4, 1], [3, -2, 99, 0]]), (3, 5))
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])


def test_regions_are_unions_by_class_with_difficult_boxes() -> None:
    boxes = np.array([[0, 0, 1, 1], [3, 3, 4, 4], [0, 4, 0, 4]])
    regions = localisation.box_regions(boxes, np.array([7, 7, 2]), np.array([True, False, True]), (5, 5))
    assert list(regions) == [2, 7]
    assert (len(regions[7].boxes), regions[7].difficult, regions[7].accompanied) == (2, False, True)
    assert (regions[2].boxes.tolist(), regions[2].difficult) == ([[0, 4, 0, 4]], True)
    np.testing.assert_array_equal(regions[7].mask, box_mask(boxes[:2], (5, 5)))
    alone = localisation.mask_regions(np.ones((1, 3, 3), bool), np.array([4]))
    assert (list(alone), alone[4].accompanied, alone[4].difficult) == ([4], False, False)


def test_hard_is_less_than_a_quarter_among_others() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:4, :6] = True
    assert Region(mask, accompanied=True).hard
    assert not Region(mask).hard
    mask[4, 0] = True  # 25 of 100
    assert not Region(mask, accompanied=True).hard


def test_scaled_boxes_are_truncated() -> None:
    assert localisation.scaled_boxes(np.array([[1, 2, 4, 3]]), (20, 10), (10, 35)).tolist() == [[3, 1, 14, 1]]


def test_cropped_regions_are_of_what_the_model_sees() -> None:
    transform = Transform(resize=256, crop=224)
    mask = np.zeros((512, 1024), bool)
    mask[100:300, 400:700] = True
    seen = localisation.cropped(Region(mask, ignore=~mask), transform)
    expected = np.zeros((224, 224))
    expected[34:134, 56:206] = 1  # half the size, less 16 rows and 144 columns
    np.testing.assert_array_equal(seen.mask > 0.5, expected)
    assert seen.mask.mean() == pytest.approx(expected.mean(), rel=0.01)
    np.testing.assert_array_equal(seen.ignore, expected == 0)


# protocols


@pytest.mark.parametrize("presets", [POINTING_PRESETS, INSIDE_PRESETS, MASK_PRESETS, BOX_PRESETS])
def test_presets_are_frozen_and_have_a_source(presets: dict[str, object]) -> None:
    for preset in presets.values():
        assert len(preset.source) > 20  # type: ignore[attr-defined]
        with pytest.raises(dataclasses.FrozenInstanceError):
            preset.source = ""  # type: ignore[attr-defined]


def region(mask: np.ndarray, boxes: int = 1, **about: bool) -> Region:
    return Region(mask, np.zeros((boxes, 4), int), **about)


MASK = one_at(40, 50)
MAP = one_at(41, 52).astype(float)


@pytest.mark.parametrize(
    ("map", "about", "preset", "hit", "status"),
    [
        (MAP, region(MASK), "torchray_voc", 1, Status.COUNTED),
        (np.flipud(MAP), region(MASK), "torchray_voc", 0, Status.COUNTED),
        (MAP, region(MASK, difficult=True), "torchray_voc", np.nan, Status.DIFFICULT),
        (MAP, region(MASK), "torchray_voc_difficult", np.nan, Status.EASY),
        (MAP, region(MASK, accompanied=True), "torchray_voc_difficult", 1, Status.COUNTED),
        (MAP, region(MASK, accompanied=True, difficult=True), "torchray_voc_difficult", np.nan, Status.DIFFICULT),
        (MAP, region(~MASK, accompanied=True), "torchray_coco_difficult", np.nan, Status.EASY),
        (MAP, region(MASK & False), "torchray_coco", np.nan, Status.EMPTY),
        (MAP * np.nan, region(MASK), "group_cam_coco", np.nan, Status.NOT_FINITE),
        (MAP * 0, region(MASK), "group_cam_coco", 0, Status.COUNTED),
        (MAP * 0, region(one_at(3, 3)), "group_cam_coco", 1, Status.COUNTED),
    ],
)
def test_pointing_counts_what_torchray_counts(
    map: np.ndarray, about: Region, preset: str, hit: float, status: Status
) -> None:
    scores = localisation.pointing(map, about, POINTING_PRESETS[preset])
    np.testing.assert_equal(scores.values["hit"], hit)
    assert scores.status == status.code


def test_pointing_says_how_many_pixels_tie() -> None:
    preset = POINTING_PRESETS["torchray_voc"]
    assert localisation.pointing(MAP, region(MASK), preset).values["tied"] == 0
    corner = np.zeros((7, 7))
    corner[0, 0] = 1
    assert localisation.pointing(corner, region(np.ones((70, 70), bool)), preset).values["tied"] == 25 / 4900
    assert localisation.pointing(MAP * 0, region(MASK), preset).values["tied"] == 1


def test_inside_leaves_out_what_its_preset_does() -> None:
    def status(mask: np.ndarray, preset: str, map: np.ndarray = MAP, **about: object) -> Status:
        scores = localisation.inside(map, region(mask, **about), INSIDE_PRESETS[preset])
        assert {np.isnan(value).item() for value in scores.values.values()} == {scores.status != Status.COUNTED.code}
        return list(Status)[scores.status]

    half, third = np.zeros((2, 60, 80), bool)
    half[:30], third[:20] = True, True
    assert status(half, "score_cam") is Status.COUNTED
    assert status(half | MASK, "score_cam") is Status.TOO_LARGE
    assert status(MASK, "score_cam", boxes=2) is Status.SEVERAL
    assert status(MASK, "single_box", boxes=2) is Status.SEVERAL
    assert status(MASK, "boxes", boxes=2) is Status.COUNTED
    assert status(third[1:], "iba", MAP[1:]) is Status.COUNTED  # 19 of 59
    assert status(third, "iba") is Status.TOO_LARGE
    assert status(MASK & False, "iba") is Status.EMPTY
    assert status(MASK, "boxes", -MAP) is Status.CONSTANT  # after ReLU
    assert status(MASK, "boxes", np.full((2, 2), np.inf)) is Status.NOT_FINITE


def test_inside_is_of_the_positive_part(rng: np.random.Generator) -> None:
    map, mask = rng.standard_normal((6, 8)), rng.random((60, 80)) < 0.2
    scores = localisation.inside(map, region(mask), INSIDE_PRESETS["boxes"])
    positive = np.maximum(map, 0)
    assert scores.values["energy"] == pytest.approx(localisation.energy_inside(positive, mask))
    assert scores.values["top_n"] == pytest.approx(localisation.top_n_inside(positive, mask))
    above_floor = localisation.inside(map + 9, region(mask), INSIDE_PRESETS["score_cam"])
    large = enlarged(map, (60, 80))
    assert above_floor.values["energy"] == pytest.approx(localisation.energy_inside(large - large.min(), mask))


def test_iba_weighs_pixels_by_how_much_is_inside(rng: np.random.Generator) -> None:
    map, mask = rng.random((4, 4)), np.zeros((4, 4))
    mask[1, 1:3] = 1, 0.4
    scores = localisation.inside(map, region(mask), INSIDE_PRESETS["iba"])
    assert scores.values["energy"] == pytest.approx((map[1, 1] + 0.4 * map[1, 2]) / map.sum())
    assert scores.values["top_n"] == (map.argmax() == 5)


def test_inside_says_how_many_pixels_tie_at_the_edge() -> None:
    map = np.repeat([[3.0, 2, 1, 0]], 4, 0)
    preset = INSIDE_PRESETS["boxes"]
    for pixels, tied in ((4, 0), (6, 4 / 16), (1, 4 / 16), (8, 0)):
        mask = (np.arange(16) < pixels).reshape(4, 4)
        assert localisation.inside(map, region(mask), preset).values["tied"] == tied


def test_masks_equal_a_loop(rng: np.random.Generator) -> None:
    preset = MASK_PRESETS["voc_masks"]
    map, mask, ignore = rng.standard_normal((5, 6)), *(rng.random((2, 30, 36)) < [[[0.3]], [[0.1]]])
    mask &= ~ignore
    scores = localisation.on_mask(map, region(mask, ignore=ignore), preset).values
    large = bilinear(np.maximum(map, 0), mask.shape)
    low, high = large[~ignore].min(), large[~ignore].max()
    shown = (large - low) / (high - low)
    expected = [
        (mask & (shown > k / 100) & ~ignore).sum() / ((mask | (shown > k / 100)) & ~ignore).sum() for k in range(100)
    ]
    np.testing.assert_allclose(scores["iou"], expected, rtol=1e-12)
    assert scores["best_iou"] == max(scores["iou"])
    assert (scores["iou_0.2"], scores["iou_0.5"]) == (scores["iou"][20], scores["iou"][50])
    assert scores["energy"] == pytest.approx(large[mask].sum() / large[~ignore].sum())


def test_masks_point_where_pixels_are_known() -> None:
    map = one_at(40, 50) + 0.5 * one_at(5, 5)
    about = region(one_at(5, 5), ignore=one_at(40, 50))
    assert localisation.on_mask(map, about, MASK_PRESETS["voc_masks"]).values["hit"] == 1
    dead = localisation.on_mask(one_at(40, 50), about, MASK_PRESETS["voc_masks"])
    assert dead.status == Status.CONSTANT.code
    assert all(np.isnan(value).all() for value in dead.values.values())
    assert dead.values["iou"].shape == (100,)


def test_class_means_over_all_and_over_seen() -> None:
    values, labels = [1, 0, 0, 1, np.nan, np.nan], [0, 0, 0, 2, 2, 3]
    means = localisation.class_means(values, labels, 5)
    assert means.all == pytest.approx((1 / 3 + 1) / 5)  # TorchRay's, where a class never seen counts 0
    assert means.seen == pytest.approx((1 / 3 + 1) / 2)
    np.testing.assert_allclose(means.per_class, [1 / 3, np.nan, 1, np.nan, np.nan])
    nothing = localisation.class_means([np.nan], [1], 2)
    assert nothing.all == 0
    assert np.isnan(nothing.seen)
    with pytest.raises(ValueError, match="labels are from 0 to 3, expected 0 to 2"):
        localisation.class_means(values, labels, 3)
    with pytest.raises(ValueError, match=r"values have shape \(6,\) and labels \(2,\)"):
        localisation.class_means(values, [0, 1], 3)

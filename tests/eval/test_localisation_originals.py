"""Localisation against the originals' own loops, written anew with OpenCV and PyTorch."""

import numpy as np
import pytest
from PIL import Image

from dcls_jax.eval import localisation
from dcls_jax.eval.localisation import Region
from dcls_jax.eval.localisation.maps import enlarged, presented
from dcls_jax.models import Transform

pytestmark = pytest.mark.parity

THRESHOLDS = np.arange(0, 1, 0.001)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def contours(map: np.ndarray, threshold: float, all_contours: bool) -> list[list[int]]:
    """clovaai/wsolevaluation, evaluation.py."""
    cv2 = pytest.importorskip("cv2")
    height, width = map.shape
    levels = (map * 255).astype(np.uint8)[..., None]
    _, above = cv2.threshold(levels, int(threshold * levels.max()), 255, cv2.THRESH_BINARY)
    found = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not found:
        return [[0, 0, 0, 0]]
    chosen = found if all_contours else [max(found, key=cv2.contourArea)]
    boxes = [cv2.boundingRect(contour) for contour in chosen]
    return [[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in boxes]


def iou(a: list[int], b: np.ndarray) -> float:
    inside = np.prod([max(0, min(a[2 + i], b[2 + i]) - max(a[i], b[i]) + 1) for i in (0, 1)])
    of_a, of_b = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return float(inside / (of_a + of_b - inside))


@pytest.mark.parametrize("largest", [True, False])
def test_boxes_are_opencvs(rng: np.random.Generator, largest: bool) -> None:
    several = 0
    for _ in range(200):
        height, width = rng.integers(1, 50, 2)
        cells = rng.random((rng.integers(1, height + 1), rng.integers(1, width + 1)))
        map = presented(cells, (height, width))
        for threshold in rng.random(5):
            expected = contours(map, threshold, not largest)
            found = localisation.boxes(map, threshold, largest=largest).tolist()
            assert sorted(found) == sorted(expected)
            several += len(expected) > 3
    assert largest or several > 100


def test_maps_are_enlarged_as_the_originals_do(rng: np.random.Generator) -> None:
    cv2, torch = pytest.importorskip("cv2"), pytest.importorskip("torch")
    for cells, size in ((7, (224, 224)), (14, (224, 224)), (8, (256, 256)), (7, (375, 500)), (9, (5, 6))):
        map = rng.standard_normal((cells, cells))
        cubic = cv2.resize(map, size[::-1], interpolation=cv2.INTER_CUBIC)
        # OpenCV's weights are float32, and exact where a cell has a power of two pixels
        np.testing.assert_allclose(enlarged(map, size, "cubic"), cubic, atol=0 if size[0] % cells == 0 else 1e-5)
        bilinear = torch.nn.functional.interpolate(torch.tensor(map)[None, None], size, mode="bilinear")[0, 0]
        np.testing.assert_allclose(enlarged(map, size), bilinear.numpy(), atol=1e-14)


@pytest.mark.parametrize("preset", ["wsol", "wsol_v1"])
def test_box_accuracy_is_the_evaluators(rng: np.random.Generator, preset: str) -> None:
    cv2 = pytest.importorskip("cv2")
    maps = rng.random((6, 7, 7)).astype(np.float32)
    corners = np.sort(rng.integers(0, 224, (6, 2, 2, 2)), 2).reshape(6, 2, 4)  # two boxes of each
    overlaps = {"wsol": [30, 50, 70], "wsol_v1": [50]}[preset]
    right = np.zeros((len(overlaps), len(THRESHOLDS)))
    for cells, boxes in zip(maps, corners, strict=True):
        map = cv2.resize(cells.astype(float), (224, 224), interpolation=cv2.INTER_CUBIC)
        map -= map.min()
        map /= map.max()
        for k, threshold in enumerate(THRESHOLDS):
            best = max(iou(a, b) for a in contours(map, threshold, preset == "wsol") for b in boxes)
            right[:, k] += [best >= overlap / 100 for overlap in overlaps]
    expected = (right / len(maps)).max(1).mean()
    assert 0 < expected < 1
    assert localisation.box_accuracy(maps, list(corners), preset=preset, size=(224, 224)) == pytest.approx(expected)


def test_pixels_are_the_evaluators(rng: np.random.Generator) -> None:
    cv2 = pytest.importorskip("cv2")
    maps, masks = rng.random((4, 14, 14)), rng.random((4, 224, 224)) < 0.2
    ignore = (rng.random(masks.shape) < 0.1) & ~masks
    edges = np.append(THRESHOLDS, [1.0, 2.0, 3.0])
    foreground, background = np.zeros((2, len(edges) - 1))
    for cells, mask, left_out in zip(maps, masks, ignore, strict=True):
        map = cv2.resize(cells, (224, 224), interpolation=cv2.INTER_CUBIC)
        map = (map - map.min()) / (map - map.min()).max()
        foreground += np.histogram(map[mask], edges)[0]
        background += np.histogram(map[~mask & ~left_out], edges)[0]
    hits, false = foreground[::-1].cumsum(), background[::-1].cumsum()
    some = (hits + false)[1:] > 0
    precision, recall = hits[1:][some] / (hits + false)[1:][some], hits / foreground.sum()
    expected = (precision * np.diff(recall)[some]).sum()
    assert localisation.pixel_average_precision(maps, masks, ignore) == pytest.approx(expected, rel=1e-12)


def test_pointing_is_torchrays(rng: np.random.Generator) -> None:
    """benchmark/pointing_game.py: hits and misses by class, and the mean of all classes' shares."""
    torch = pytest.importorskip("torch")
    preset = localisation.POINTING_PRESETS["torchray_voc"]
    hits, misses, values, labels = np.zeros(20), np.zeros(20), [], []
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(100, 300, 2))
        map, label, difficult = rng.standard_normal((7, 9)), int(rng.integers(0, 5)), bool(rng.random() < 0.1)
        x0, y0 = rng.integers(0, width - 20), rng.integers(0, height - 20)
        box = np.array([[x0, y0, x0 + rng.integers(0, 20), y0 + rng.integers(0, 20)]])
        regions = localisation.box_regions(box, np.array([label]), np.array([difficult]), (height, width))
        scores = localisation.pointing(map, regions[label], preset)
        values.append(scores.values["hit"])
        labels.append(label)

        large = torch.nn.functional.interpolate(torch.tensor(map)[None, None], (height, width), mode="bilinear")
        point = int(large.reshape(-1).argmax())
        v, u = point // width, point % width
        mask = torch.zeros((height, width), dtype=torch.bool)
        mask[box[0, 1] : box[0, 3] + 1, box[0, 0] : box[0, 2] + 1] = True
        rows, columns = torch.meshgrid(torch.arange(height) - v, torch.arange(width) - u, indexing="ij")
        hit = bool((mask & (rows**2 + columns**2 < 15**2)).any())
        if not difficult:
            hits[label] += hit
            misses[label] += not hit
    expected = (hits / (hits + misses).clip(1)).mean()
    assert 0 < expected < 0.25  # 15 of 20 classes are never seen
    assert localisation.class_means(values, labels, preset.classes).all == pytest.approx(expected)


def test_energy_and_top_pixels_are_ibas(rng: np.random.Generator) -> None:
    """scripts/eval_bounding_boxes.py: torchvision's resize and centre crop of picture and mask, ranks inside."""
    mask = np.zeros((330, 480), bool)
    mask[60:200, 130:300] = True
    resized = Image.fromarray(np.uint8(mask * 255)).resize((372, 256), Image.Resampling.BILINEAR)
    soft = np.asarray(resized)[16:240, 74:298] / 255  # of a margin of 148
    heatmap = rng.random((224, 224))
    ranks = np.empty(heatmap.size, int)
    ranks[np.argsort(-heatmap, axis=None)] = np.arange(heatmap.size)
    hard = soft.ravel() > 0.5
    region = localisation.cropped(Region(mask), Transform(resize=256, crop=224))
    values = localisation.inside(heatmap, region, localisation.INSIDE_PRESETS["iba"]).values
    assert region.share == pytest.approx(soft.mean())
    assert values["energy"] == pytest.approx((heatmap * soft).sum() / heatmap.sum())
    assert values["top_n"] == pytest.approx((ranks[hard] < hard.sum()).mean())

"""Against the originals' loops in PyTorch, on the same model with the same weights, and against pytorch-grad-cam."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam import grad_cam
from dcls_jax.eval import faithfulness
from dcls_jax.eval.faithfulness import FLIPPING_PRESETS
from tests.cam.toys import ConvNet

pytestmark = pytest.mark.parity

SIDE, IMAGES = 64, 2
PIXELS = SIDE * SIDE
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def pair():
    """A small network of ours, and the same in PyTorch: images (B, C, H, W) -> logits."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    ours = ConvNet()
    kernels = [torch.tensor(np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1)) for conv in (ours.conv1, ours.conv2)]
    biases = [torch.tensor(np.asarray(layer.bias[...])) for layer in (ours.conv1, ours.conv2, ours.fc)]
    weight = torch.tensor(np.asarray(ours.fc.kernel[...]).T)

    def logits(x):
        x = torch.relu(functional.conv2d(x, kernels[0], biases[0], padding=1))
        x = functional.pad(x, (0, 1, 0, 1))  # "SAME", of an even size at stride 2
        x = torch.relu(functional.conv2d(x, kernels[1], biases[1], stride=2))
        return functional.linear(x.mean((2, 3)), weight, biases[2])

    return ours, logits


@pytest.fixture(scope="module")
def peer():
    """pytorch-grad-cam's metrics."""
    pytest.importorskip("tests.torch_models", exc_type=ImportError)  # lets torchvision be imported
    from pytorch_grad_cam import metrics
    from pytorch_grad_cam.metrics import perturbation_confidence, road  # noqa: F401  # attributes of that

    return metrics


@pytest.fixture(scope="module")
def pictures():
    """Images as both take them, and maps whose values are all distinct."""
    torch = pytest.importorskip("torch")

    rng = np.random.default_rng(0)
    images = rng.standard_normal((IMAGES, SIDE, SIDE, 3)).astype(np.float32)
    maps = np.stack([rng.permutation(PIXELS).reshape(SIDE, SIDE) for _ in range(IMAGES)]).astype(np.float32)
    return images, torch.tensor(images.transpose(0, 3, 1, 2).copy()), maps


def rises_blur(x):
    torch = pytest.importorskip("torch")
    from scipy.ndimage import gaussian_filter

    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.tensor(gaussian_filter(impulse, 5), dtype=torch.float32).expand(3, 1, 11, 11)
    return torch.nn.functional.conv2d(x, kernel, padding=5, groups=3)


def group_cams_blur(x):
    torch = pytest.importorskip("torch")

    distance = torch.arange(51, dtype=torch.float32) - 25
    taps = torch.exp(-(distance**2) / (2 * 50.0**2))
    taps = taps / taps.sum()
    kernel = torch.outer(taps, taps).expand(3, 1, 51, 51)
    reflected = torch.nn.functional.pad(x, (25, 25, 25, 25), mode="reflect")
    return torch.nn.functional.conv2d(reflected, kernel, groups=3)


@pytest.mark.parametrize(
    ("preset", "blur"), [("rise", rises_blur), ("group_cam_2021", group_cams_blur), ("group_cam", group_cams_blur)]
)
def test_curves_are_those_of_rises_loop(preset, blur, pair, pictures):
    torch = pytest.importorskip("torch")

    ours, original = pair
    images, x, maps = pictures
    published = FLIPPING_PRESETS[preset]
    step = published.step * PIXELS // 224**2
    rule = replace(published, step=step)
    for kind in ("deletion", "insertion"):
        curves = getattr(faithfulness, kind)(ours, images, maps, preset=rule)
        for i in range(IMAGES):
            image, label = x[i : i + 1], int(original(x[i : i + 1]).argmax())
            start, finish = (image, torch.zeros_like(image)) if kind == "deletion" else (blur(image), image)
            shown, order = start.clone().reshape(3, PIXELS), np.flip(np.argsort(maps[i].ravel())).copy()
            expected = []
            for number in range(-(-PIXELS // step) + 1):
                expected.append(float(torch.softmax(original(shown.reshape(1, 3, SIDE, SIDE)), 1)[0, label]))
                pixels = order[number * step : (number + 1) * step]
                shown[:, pixels] = finish.reshape(3, PIXELS)[:, pixels]
            np.testing.assert_allclose(curves[i], expected, atol=1e-5)
            area = (sum(expected) - expected[0] / 2 - expected[-1] / 2) / (len(expected) - 1)
            np.testing.assert_allclose(faithfulness.auc(curves)[i], area, atol=1e-5)


@pytest.mark.parametrize("maps_of", ["pixels", "cells"])
def test_curves_are_those_of_torch_cams_metric(maps_of, pair, pictures):
    torch = pytest.importorskip("torch")

    ours, original = pair
    images, x, maps = pictures
    maps = maps if maps_of == "pixels" else np.random.default_rng(1).random((IMAGES, 7, 7)).astype(np.float32)
    large = torch.nn.functional.interpolate(torch.tensor(maps)[:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
    ranks = torch.argsort(torch.argsort(large.flatten(1), dim=1, descending=True, stable=True), dim=1)
    step = -(-PIXELS // 20)
    counts = [*range(0, PIXELS, step), PIXELS]
    labels = original(x).argmax(1)
    curves = {"deletion": [], "insertion": []}
    for count in counts:
        first = (ranks < count).reshape(IMAGES, 1, SIDE, SIDE)
        for kind, shown in (("deletion", x * ~first), ("insertion", x * first)):
            curves[kind].append(torch.softmax(original(shown), 1)[torch.arange(IMAGES), labels])
    fractions = torch.tensor(counts) / PIXELS
    for kind, expected in curves.items():
        own = getattr(faithfulness, kind)(ours, images, maps, preset="torch_cam")
        np.testing.assert_allclose(own, torch.stack(expected, 1), atol=1e-5)
        along = faithfulness.fractions((SIDE, SIDE), preset="torch_cam")
        areas = torch.trapezoid(torch.stack(expected, 1), fractions, dim=1)
        np.testing.assert_allclose(faithfulness.auc(own, fractions=along), areas, atol=1e-5)


def test_curves_are_those_of_xpliques_loop(pair, pictures):
    torch = pytest.importorskip("torch")

    ours, original = pair
    images, x, maps = pictures
    order = np.argsort(maps.reshape(IMAGES, -1), axis=-1)[:, ::-1]
    labels = original(x).argmax(1)
    kinds = {"deletion": faithfulness.deletion, "insertion": faithfulness.insertion}
    own = {kind: metric(ours, images, maps, preset="xplique") for kind, metric in kinds.items()}
    for point, count in enumerate(np.linspace(0, PIXELS, 11, dtype=np.int32)):
        for kind, curves in own.items():
            start, finish = (x, torch.zeros_like(x)) if kind == "deletion" else (torch.zeros_like(x), x)
            shown = start.clone().flatten(2)
            for i in range(IMAGES):
                shown[i][:, order[i, :count].copy()] = finish.flatten(2)[i][:, order[i, :count].copy()]
            expected = torch.softmax(original(shown.reshape(x.shape)), 1)[torch.arange(IMAGES), labels]
            np.testing.assert_allclose(curves[:, point], expected, atol=1e-5)


def test_drops_are_those_of_torch_cams_metric(pair, pictures):
    torch = pytest.importorskip("torch")

    ours, original = pair
    images, x, _ = pictures
    labels = original(x).argmax(1)
    maps = grad_cam(ours, jnp.asarray(images), jnp.asarray(labels.numpy()))
    shown = torch.relu(torch.tensor(np.asarray(maps)))
    shown = shown - shown.amin((1, 2), keepdim=True)
    shown = shown / (shown.amax((1, 2), keepdim=True) + 1e-8)
    masks = torch.nn.functional.interpolate(shown[:, None], (SIDE, SIDE), mode="bilinear")
    rows = torch.arange(IMAGES)
    y, after = (torch.softmax(original(each), 1)[rows, labels] for each in (x, masks * x))
    own = faithfulness.confidence_change(ours, images, maps)
    np.testing.assert_allclose(own["drop"], torch.relu(y - after) / (y + 1e-7), atol=1e-5)
    np.testing.assert_array_equal(own["increase"], y < after)


def test_adcc_is_that_of_its_authors(pair, pictures):
    torch = pytest.importorskip("torch")
    from scipy.stats import pearsonr

    ours, original = pair
    images, x, _ = pictures
    labels = original(x).argmax(1)

    def explained(images):
        maps = grad_cam(ours, jnp.asarray(images.numpy().transpose(0, 2, 3, 1)), jnp.asarray(labels.numpy()))
        shown = torch.relu(torch.tensor(np.asarray(maps)))
        shown = shown - shown.amin((1, 2), keepdim=True)
        shown = shown / (shown.amax((1, 2), keepdim=True) + 1e-8)
        return torch.nn.functional.interpolate(shown[:, None], (SIDE, SIDE), mode="bilinear")

    first = explained(x)
    second = explained(x * first)
    own = faithfulness.adcc(ours, images)
    for i in range(IMAGES):
        y = torch.softmax(original(x[i : i + 1]), 1)
        after = torch.softmax(original((x * first)[i : i + 1]), 1)[0, labels[i]]
        drop = float(max(0, y.max() - after) / y.max())
        coherency = (pearsonr(first[i].ravel(), second[i].ravel()).statistic + 1) / 2
        complexity = float(first[i].abs().mean())
        expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
        np.testing.assert_allclose(own["adcc"][i], expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_imputation_is_that_of_the_original(peer):
    torch = pytest.importorskip("torch")

    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 48, 40, 3)).astype(np.float32)
    keep = np.stack([rng.random((48, 40)) < 0.4, np.add.outer(np.arange(48), np.arange(40)) % 48 < 12])
    own = faithfulness.impute(images, keep, noise=0, key=KEY)
    for image, kept, filled in zip(images, keep, own, strict=True):
        imputer = peer.road.NoisyLinearImputer(noise=0)
        original = imputer(torch.tensor(image.transpose(2, 0, 1)), torch.tensor(kept.astype(int)))
        np.testing.assert_allclose(filled, original.numpy().transpose(1, 2, 0), atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_percentiles_are_those_of_the_original(pair, peer):
    torch = pytest.importorskip("torch")

    ours, original = pair
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    maps = rng.random((2, 32, 32)).astype(np.float32)
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, (1, 2), keepdims=True)
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    labels = original(x).argmax(1)
    targets = [lambda y, label=label: torch.softmax(y, -1)[label] for label in labels]
    options = {"preset": "pytorch_grad_cam", "percentages": [0.2, 0.5, 0.8], "noise": 0.0, "key": KEY}
    own = faithfulness.road(ours, images, maps, **options)
    perturbation, imputer = peer.perturbation_confidence, peer.road.NoisyLinearImputer(noise=0)
    removals = {"morf": perturbation.RemoveMostRelevantFirst, "lerf": perturbation.RemoveLeastRelevantFirst}
    for kind, removal in removals.items():
        for j, percentile in enumerate((20, 50, 80)):
            metric = perturbation.PerturbationConfidenceMetric(removal(percentile, imputer))
            expected = metric(x, maps, targets, original, return_diff=False)
            np.testing.assert_allclose(own[kind][:, j], expected, atol=1e-5)

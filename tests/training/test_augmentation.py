"""What happens to a training picture: what was drawn is what was meant, and each operation is timm's."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dcls_jax.training.augmentation import Augmentation, erased, jittered, normalised, random_part
from dcls_jax.training.rand_augment import OPERATIONS, Look, RandAugment, operate
from tests.conftest import slow

FILL = (124, 116, 104)
LOOK = Look(Image.Resampling.BICUBIC, FILL)
ODD, EVEN = (61, 47), (64, 64)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth and bright at one side, so that each operation changes it."""
    width, height = size
    noise = np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    ramp = np.linspace(20, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    return Image.fromarray((ramp * [1, 0.8, 0.6] + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_a_picture(name: str) -> None:
    before = picture(EVEN)
    after = operate(before, name, 9, 1, LOOK)
    assert (after.size, after.mode) == (before.size, "RGB")
    assert (np.asarray(after) != np.asarray(before)).mean() > 0.3


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_its_whole_strength(name: str) -> None:
    for sign in (1, -1):
        assert operate(picture(EVEN), name, 10, sign, LOOK).size == EVEN
    assert not np.asarray(operate(picture(EVEN), "PosterizeIncreasing", 10, 1, LOOK)).any()


@pytest.mark.parametrize(
    ("name", "magnitude", "argument"),
    [
        ("Rotate", 9, -27),
        ("PosterizeIncreasing", 9, 1),
        ("SolarizeIncreasing", 9, 26),
        ("SolarizeAdd", 9, 99),
        ("ColorIncreasing", 9, 0.19),
        ("ColorIncreasing", 10, 0.1),
        ("ShearX", 9, -0.27),
        ("TranslateXRel", 9, -0.405),
    ],
)
def test_strength_by_hand(name: str, magnitude: float, argument: float) -> None:
    assert OPERATIONS[name].argument(magnitude / 10, -1) == pytest.approx(argument)


@pytest.mark.parity
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [ODD, EVEN])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_timms(monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int], sign: int) -> None:
    pytest.importorskip("tests.torch_models", exc_type=ImportError)  # lets torchvision be imported
    from timm.data.auto_augment import AugmentOp

    monkeypatch.setattr(random, "random", lambda: 0.6 if sign < 0 else 0.4)  # above one half timm negates
    original = AugmentOp(name, prob=1.0, magnitude=9, hparams={"img_mean": FILL, "interpolation": LOOK.resample})
    found, expected = operate(picture(size), name, 9, sign, LOOK), original(picture(size))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parity
def test_the_operations_are_those_of_timm_and_so_is_its_name() -> None:
    pytest.importorskip("tests.torch_models", exc_type=ImportError)
    from timm.data.auto_augment import rand_augment_transform

    original = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    assert [operation.name for operation in original.ops] == list(OPERATIONS)
    assert {operation.prob for operation in original.ops} == {RandAugment().probability}
    assert original.num_layers == RandAugment().layers


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5", "rand-m9-inc1-x3", "augmix-m3", "rand-m99-inc1"])
def test_names_of_what_there_is_not(text: str) -> None:
    with pytest.raises(ValueError, match=r"rand_augment \(=|magnitude \(=99"):
        RandAugment.parse(text)


def test_timms_name_is_read() -> None:
    assert RandAugment.parse("rand-m9-mstd0.5-inc1") == RandAugment()
    assert RandAugment.parse("rand-m7-n3-inc1") == RandAugment(7, 0, 3)


def test_operations_are_drawn_alike_often_and_half_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float, int]] = []
    monkeypatch.setattr(
        "dcls_jax.training.rand_augment.operate",
        lambda image, name, magnitude, sign, look: (drawn.append((name, magnitude, sign)), image)[1],
    )
    rng, augment = np.random.default_rng(0), RandAugment()
    for _ in range(3000):
        augment(picture((2, 2)), rng, lambda: LOOK)
    names, magnitudes, signs = zip(*drawn, strict=True)
    assert len(drawn) == pytest.approx(3000, rel=0.05)
    assert all(names.count(name) == pytest.approx(200, abs=60) for name in OPERATIONS)
    assert np.mean(magnitudes) == pytest.approx(9, abs=0.03)
    assert np.std(magnitudes) == pytest.approx(0.5, abs=0.03)
    assert max(magnitudes) <= 10
    assert np.mean(signs) == pytest.approx(0, abs=0.06)


def parts(size: tuple[int, int], count: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array([random_part(size, (0.08, 1.0), rng) for _ in range(count)])


def test_parts_are_inside_and_of_all_sizes() -> None:
    left, top, right, bottom = parts((120, 100)).T
    width, height = right - left, bottom - top
    assert min(left.min(), top.min()) == 0
    assert (right.max(), bottom.max()) == (120, 100)
    assert (width / height).min() > 0.7
    assert (width / height).max() < 1.4
    assert 0.07 < (width * height).min() / 12000 < 0.1


@pytest.mark.parity
@pytest.mark.parametrize("size", [(120, 100), (300, 40)])
def test_parts_are_timms_in_distribution(size: tuple[int, int]) -> None:
    """Of 2000 by either: means and deviations of where, how large and of what ratio within four standard errors."""
    pytest.importorskip("tests.torch_models", exc_type=ImportError)
    from timm.data.transforms import RandomResizedCropAndInterpolation

    random.seed(0)
    drawn = [
        RandomResizedCropAndInterpolation.get_params(Image.new("RGB", size), (0.08, 1.0), (3 / 4, 4 / 3))
        for _ in range(2000)
    ]
    expected = np.array([(left, top, left + w, top + h) for top, left, h, w in drawn])
    found = parts(size)
    for column in range(4):
        a, b = found[:, column], expected[:, column]
        assert abs(a.mean() - b.mean()) <= 4 * math.hypot(a.std(), b.std()) / math.sqrt(2000) + 1e-9
        assert a.std() == pytest.approx(b.std(), rel=0.08, abs=1e-9)


@pytest.mark.parity
def test_a_long_picture_has_timms_central_part() -> None:
    pytest.importorskip("tests.torch_models", exc_type=ImportError)
    from timm.data.transforms import RandomResizedCropAndInterpolation

    for size in ((900, 30), (31, 700)):
        top, left, h, w = RandomResizedCropAndInterpolation.get_params(
            Image.new("RGB", size), (0.9, 1.0), (3 / 4, 4 / 3)
        )
        assert random_part(size, (0.9, 1.0), np.random.default_rng(0)) == (left, top, left + w, top + h)


def test_what_is_erased() -> None:
    rng = np.random.default_rng(2)
    boxes = np.array([erased(100, 0.25, rng) for _ in range(4000)])
    done = boxes[boxes.any(1)]
    assert len(done) / 4000 == pytest.approx(0.25, abs=0.03)
    width, height = (done[:, 2] - done[:, 0]), (done[:, 3] - done[:, 1])
    share = width * height / 10_000
    assert 0.015 < share.min() < 0.03
    assert 0.3 < share.max() <= 0.34
    assert done.min() >= 0
    assert done.max() <= 100
    # uniform, but that tall and flat ones do not fit and are drawn again
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)


@pytest.mark.parity
def test_erased_shares_are_timms() -> None:
    pytest.importorskip("tests.torch_models", exc_type=ImportError)
    import torch
    from timm.data.random_erasing import RandomErasing

    random.seed(3)
    original, shares = RandomErasing(0.25, mode="pixel", device="cpu"), []
    for _ in range(3000):
        image = original(torch.zeros(1, 50, 50))[0].numpy()
        shares.append((image != 0).mean())
    rng = np.random.default_rng(3)
    ours = [(box[2] - box[0]) * (box[3] - box[1]) / 2500 for box in (erased(50, 0.25, rng) for _ in range(3000))]
    assert np.mean(ours) == pytest.approx(np.mean(shares), abs=4 * np.std(shares) * math.sqrt(2 / 3000))
    assert np.max(ours) == pytest.approx(np.max(shares), abs=0.02)


def test_noise_is_where_it_was_drawn_and_the_rest_is_normalised() -> None:
    images = np.full((2, 40, 30, 3), 51, np.uint8)
    boxes = np.array([[5, 10, 25, 40], [0, 0, 0, 0]], np.int32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.5, 0.25)
    x = np.asarray(normalised(jnp.asarray(images), jnp.asarray(boxes), jax.random.key(0), mean=mean, std=std))
    np.testing.assert_allclose(x[1], np.broadcast_to([0.2, 0, -0.4], (40, 30, 3)), atol=1e-6)
    np.testing.assert_allclose(x[0, :10], x[1, :10])
    np.testing.assert_allclose(x[0, 10:, :5], x[1, 10:, :5])
    noise = x[0, 10:40, 5:25]
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parity
def test_jitter_is_torchvisions() -> None:
    pytest.importorskip("tests.torch_models", exc_type=ImportError)
    from torchvision.transforms import functional

    class Fixed:
        permutation = staticmethod(lambda count: [2, 0, 1])
        uniform = staticmethod(lambda low, high: next(factors))

    factors = iter([1.3, 0.7, 1.1])
    found = jittered(picture(ODD), 0.4, Fixed())  # type: ignore[arg-type]
    expected = functional.adjust_contrast(
        functional.adjust_brightness(functional.adjust_saturation(picture(ODD), 1.3), 0.7), 1.1
    )
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    "augment",
    [
        Augmentation(size=24),
        slow(Augmentation(size=24, rand_augment=None, interpolation="random")),
        slow(Augmentation(size=24, interpolation="bilinear", erasing=0, flip=0)),
    ],
)
def test_all_of_it_depends_on_the_generator_alone(augment: Augmentation) -> None:
    image = picture((50, 40))
    first, again, other = (augment(image, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert first[0].shape == (24, 24, 3)
    assert first[0].dtype == np.uint8
    assert first[1].dtype == np.int32
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": (0.5, 0.2)}, r"scale \(=\(0.5, 0.2\)\)"), ({"interpolation": "nearest"}, "interpolation")],
)
def test_wrong_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)

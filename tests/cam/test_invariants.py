"""What holds for every method by its name: chunks, dtypes, mirrors and what the target does not depend on.

All of them at once, from as few programs as can be (`explain_all`), for programs take longer to compile than to run:
`OF_CONV_NET` and `OF_CUBIC` are asked for even where a test looks at some of the maps alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam import METHODS, eigen_smooth, explain_all, options_of
from tests.cam.toys import ConvNet, Cubic, PooledLinear
from tests.conftest import normal, slow

pytestmark = pytest.mark.filterwarnings("ignore::dcls_jax.cam.DeadMapWarning")  # some have nothing to find

LABELS = jnp.array([0, 4, 2, 2])
KEY = jax.random.key(7)
FEW = {
    "finer_cam": {"count": 1},
    "group_cam": {"groups": 3, "blur_size": 3, "blur_sigma": 1.0},
    "integrated_grad_cam": {"steps": 3},
    "integrated_gradients": {"steps": 3},
    "is_cam": {"steps": 2},
    "occlusion": {"window": 2, "stride": 1},
    "rise": {"masks": 5, "cells": 2},
    "smooth_grad": {"samples": 2},
    "smooth_grad_cam_pp": {"samples": 2},
    "ss_cam": {"samples": 2},
}
ASKED = {
    name: {"method": name} | FEW.get(name, {}) | ({"key": KEY} if "key" in options_of(name) else {}) for name in METHODS
} | {"grad_cam_pp normalised": {"method": "grad_cam_pp", "normalised": True}}

DRAWN = {"random_cam", "rise", "smooth_grad", "smooth_grad_cam_pp", "ss_cam"}
WITHOUT_TARGETS = {"eigen_cam", "fem", "kpca_cam", "random_cam"}
BY_PROBABILITIES = {"group_cam", "is_cam", "rise", "score_cam", "ss_cam"}
PIECEWISE_LINEAR = {"full_grad"}
AFFINE = {"cam"}
SIGNLESS = {"full_grad", "guided_backprop", "guided_grad_cam", "seg_eigen_cam"}


IMAGES = normal(4, 6, 5, 3)


def but(made, *without: set[str]):
    """What was asked of every method, or made by it, but some."""
    return {name: row for name, row in made.items() if ASKED[name]["method"] not in set().union(*without)}


OF_CONV_NET = but(ASKED, AFFINE)
OF_CUBIC = but(ASKED, AFFINE, PIECEWISE_LINEAR)


@pytest.fixture(scope="module")
def maps():
    return explain_all(ConvNet(), IMAGES, LABELS, OF_CONV_NET)


def check(made, expected, relative=1e-5):
    for name, maps in made.items():
        difference, largest = np.abs(maps - expected[name]).max(), np.abs(expected[name]).max()
        assert difference <= relative * largest, f"{name} differs by {difference}, and the largest value is {largest}"


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_and_images_alone_give_what_all_give_at_once(maps, chunk):
    assert all(each.dtype == IMAGES.dtype and len(each) == 4 for each in maps.values())
    check(explain_all(ConvNet(), IMAGES, LABELS, OF_CONV_NET, chunk=chunk), maps, 1e-4)
    alone = explain_all(ConvNet(), IMAGES[1 : 1 + chunk], LABELS[1 : 1 + chunk], OF_CONV_NET)
    check(alone, {name: each[1 : 1 + chunk] for name, each in maps.items()}, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("masks_at_a_time", [1, 12])
def test_how_many_masks_at_a_time_does_not_matter(maps, masks_at_a_time):
    masking = {name: row for name, row in OF_CONV_NET.items() if "masks_at_a_time" in options_of(row["method"])}
    parts = {name: row | {"masks_at_a_time": masks_at_a_time} for name, row in masking.items()}
    check(explain_all(ConvNet(), IMAGES, LABELS, parts), maps)


@pytest.mark.parametrize(
    ("model", "chosen", "dtype"),
    [
        slow(Cubic(), OF_CUBIC, "float32"),
        (ConvNet(), OF_CONV_NET, "float32"),
        slow(ConvNet(), OF_CONV_NET, "bfloat16"),
    ],
)
def test_maps_are_finite_whatever_comes_in(model, chosen, dtype):
    odd = jnp.stack([jnp.zeros_like(IMAGES[0]), jnp.ones_like(IMAGES[0]), -jnp.abs(IMAGES[0]), 1e-15 * IMAGES[0]])
    explain_all(model, odd.astype(dtype), LABELS, chosen)  # raises, if they are not


def test_dead_activations_have_no_map():
    model = ConvNet()
    model.conv1.kernel[...] = jnp.zeros_like(model.conv1.kernel[...])
    model.conv1.bias[...] = jnp.zeros_like(model.conv1.bias[...])
    made = explain_all(model, IMAGES, LABELS, OF_CONV_NET)
    assert not [name for name, maps in but(made, PIECEWISE_LINEAR, {"rise"}).items() if maps.any()]


@pytest.mark.slow
def test_a_class_without_weights_has_a_zero_map():
    model = Cubic()
    model.fc.kernel[...] = jnp.zeros_like(model.fc.kernel[...])
    made = explain_all(model, IMAGES, LABELS, OF_CUBIC)
    assert not [name for name, maps in but(made, WITHOUT_TARGETS, BY_PROBABILITIES).items() if maps.any()]


@pytest.mark.slow
def test_mirrored_and_shuffled_channels_change_nothing_else():
    model, other = Cubic(), Cubic()
    order = jnp.array([2, 0, 1])
    other.fc.kernel[...] = model.fc.kernel[order]
    maps = explain_all(model, IMAGES, LABELS, OF_CUBIC)
    shuffled = explain_all(other, IMAGES[..., order], LABELS, OF_CUBIC)
    mirrored = explain_all(model, IMAGES[:, :, ::-1], LABELS, OF_CUBIC)
    for made in (shuffled, {name: it[:, :, ::-1] for name, it in mirrored.items()}):
        check(but(made, DRAWN, {"group_cam"}), maps, 1e-4)  # whose groups are of neighbours


def test_a_bias_of_the_logits_changes_nothing(maps):
    other = ConvNet()
    other.fc.bias[...] = other.fc.bias[...] + 3
    made = explain_all(other, IMAGES, LABELS, OF_CONV_NET)
    check(but(made, {"ablation_cam", "rise"}), maps, 1e-4)  # relative to the logit; probabilities of rounding masks


@pytest.mark.slow
def test_classes_are_told_apart():
    # channel 0 fires on the left and speaks for class 0, channel 1 on the right and for class 1
    model = PooledLinear(channels=2, classes=2)
    model.fc.kernel[...] = 2 * jnp.eye(2) - 1
    model.fc.bias[...] = jnp.zeros(2)
    image = jnp.zeros((1, 4, 4, 2)).at[:, :, :2, 0].set(1).at[:, :, 2:, 1].set(1)
    pair = jnp.concatenate([image, image])
    made = explain_all(model, pair, jnp.array([0, 1]), but(ASKED, WITHOUT_TARGETS, DRAWN, SIGNLESS))
    for name, maps in made.items():
        assert maps[0, :, :2].mean() > maps[0, :, 2:].mean(), name
        assert maps[1, :, 2:].mean() > maps[1, :, :2].mean(), name


@pytest.mark.long
def test_eigen_smoothing_is_the_first_singular_vector_of_what_is_summed():
    """But for Integrated Grad-CAM, which takes a ReLU of its sums."""
    summing = {
        name: row
        for name, row in but(OF_CONV_NET, {"integrated_grad_cam"}).items()
        if "reduce" in options_of(row["method"])
    }

    @jax.jit
    def terms_and_maps(model):
        terms = {
            name: METHODS[row["method"]](
                model, IMAGES, LABELS, reduce=lambda terms: terms, **{k: v for k, v in row.items() if k != "method"}
            )
            for name, row in summing.items()
        }
        smoothing = {f"smooth {name}": row | {"reduce": eigen_smooth} for name, row in summing.items()}
        return terms, explain_all(model, IMAGES, LABELS, summing | smoothing)

    terms, maps = terms_and_maps(ConvNet())
    for name, terms_of in terms.items():
        check({name: maps[name]}, {name: terms_of.sum(-1)})
        for image_terms, made in zip(np.asarray(terms_of, float), np.asarray(maps[f"smooth {name}"]), strict=True):
            x = image_terms.reshape(-1, image_terms.shape[-1])
            x -= x.mean(0)
            expected = x @ np.linalg.svd(x)[2][0]
            expected *= np.sign(expected @ x.sum(1)) or 1
            assert np.abs(made.ravel() - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_a_method_by_its_name_is_the_method(maps):
    for method in ("grad_cam", "score_cam"):
        direct = jax.jit(METHODS[method])(ConvNet(), IMAGES, LABELS)
        np.testing.assert_allclose(maps[method], direct, rtol=1e-4, atol=1e-6)

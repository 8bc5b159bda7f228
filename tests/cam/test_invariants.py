"""What holds for every method by its name: chunks, dtypes, mirrors and what the target does not depend on.

All of them at once, from one program each (`explain_all`), for programs take longer to compile than to run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam import METHODS, eigen_smooth, explain, explain_all, options_of
from tests.cam.toys import ConvNet, Cubic, PooledLinear
from tests.conftest import normal

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


def asked(*without: set[str], **options):
    """Every method but some."""
    return {name: row | options for name, row in ASKED.items() if row["method"] not in set().union(*without)}


@pytest.fixture
def images():
    return normal(4, 6, 5, 3)


def check(made, expected, relative=1e-5):
    assert made.keys() == expected.keys()
    for name, maps in made.items():
        difference, largest = np.abs(maps - expected[name]).max(), np.abs(expected[name]).max()
        assert difference <= relative * largest, f"{name} differs by {difference}, and the largest value is {largest}"


def test_chunks_and_images_alone_give_what_all_give_at_once(images):
    model, chosen = ConvNet(), asked(AFFINE)
    together = explain_all(model, images, LABELS, chosen)
    assert all(maps.dtype == images.dtype and len(maps) == 4 for maps in together.values())
    check(explain_all(model, images, LABELS, chosen, chunk=3), together, 1e-4)
    alone = explain_all(model, images[1:2], LABELS[1:2], chosen)
    check(alone, {name: maps[1:2] for name, maps in together.items()}, 1e-4)


@pytest.mark.parametrize("masks_at_a_time", [1, 12])
def test_how_many_masks_at_a_time_does_not_matter(images, masks_at_a_time):
    masking = {name: row for name, row in asked().items() if "masks_at_a_time" in options_of(row["method"])}
    together = explain_all(ConvNet(), images, LABELS, masking)
    parts = {name: row | {"masks_at_a_time": masks_at_a_time} for name, row in masking.items()}
    check(explain_all(ConvNet(), images, LABELS, parts), together)


@pytest.mark.parametrize(("model", "dtype"), [(Cubic(), "float32"), (ConvNet(), "float32"), (ConvNet(), "bfloat16")])
def test_maps_are_finite_whatever_comes_in(images, model, dtype):
    odd = jnp.stack([jnp.zeros_like(images[0]), jnp.ones_like(images[0]), -jnp.abs(images[0]), 1e-15 * images[0]])
    chosen = asked(AFFINE, PIECEWISE_LINEAR) if isinstance(model, Cubic) else asked(AFFINE)
    explain_all(model, odd.astype(dtype), LABELS, chosen)  # raises, if they are not


def test_dead_activations_have_no_map(images):
    model = ConvNet()
    model.conv1.kernel[...] = jnp.zeros_like(model.conv1.kernel[...])
    model.conv1.bias[...] = jnp.zeros_like(model.conv1.bias[...])
    made = explain_all(model, images, LABELS, asked(AFFINE, PIECEWISE_LINEAR, {"rise"}))
    assert not [name for name, maps in made.items() if maps.any()]


def test_a_class_without_weights_has_a_zero_map(images):
    model = Cubic()
    model.fc.kernel[...] = jnp.zeros_like(model.fc.kernel[...])
    made = explain_all(model, images, LABELS, asked(AFFINE, PIECEWISE_LINEAR, WITHOUT_TARGETS, BY_PROBABILITIES))
    assert not [name for name, maps in made.items() if maps.any()]


def test_mirrored_and_shuffled_channels_change_nothing_else(images):
    model, other = Cubic(), Cubic()
    order = jnp.array([2, 0, 1])
    other.fc.kernel[...] = model.fc.kernel[order]
    chosen = asked(AFFINE, PIECEWISE_LINEAR, DRAWN, {"group_cam"})  # whose groups are of neighbours
    maps = explain_all(model, images, LABELS, chosen)
    check(explain_all(other, images[..., order], LABELS, chosen), maps, 1e-4)
    mirrored = explain_all(model, images[:, :, ::-1], LABELS, chosen)
    check({name: it[:, :, ::-1] for name, it in mirrored.items()}, maps, 1e-4)


def test_a_bias_of_the_logits_changes_nothing(images):
    model, other = ConvNet(), ConvNet()
    other.fc.bias[...] = other.fc.bias[...] + 3
    chosen = asked(AFFINE, {"ablation_cam", "rise"})  # relative to the logit; probabilities of rounding masks
    check(explain_all(other, images, LABELS, chosen), explain_all(model, images, LABELS, chosen), 1e-4)


def test_classes_are_told_apart():
    # channel 0 fires on the left and speaks for class 0, channel 1 on the right and for class 1
    model = PooledLinear(channels=2, classes=2)
    model.fc.kernel[...] = 2 * jnp.eye(2) - 1
    model.fc.bias[...] = jnp.zeros(2)
    image = jnp.zeros((1, 4, 4, 2)).at[:, :, :2, 0].set(1).at[:, :, 2:, 1].set(1)
    pair = jnp.concatenate([image, image])
    made = explain_all(model, pair, jnp.array([0, 1]), asked(WITHOUT_TARGETS, DRAWN, SIGNLESS))
    for name, maps in made.items():
        assert maps[0, :, :2].mean() > maps[0, :, 2:].mean(), name
        assert maps[1, :, 2:].mean() > maps[1, :, :2].mean(), name


def test_eigen_smoothing_is_the_first_singular_vector_of_what_is_summed(images):
    """But for Integrated Grad-CAM, which takes a ReLU of its sums."""
    model = ConvNet()
    summing = {
        name: row
        for name, row in asked(AFFINE, {"integrated_grad_cam"}).items()
        if "reduce" in options_of(row["method"])
    }

    @jax.jit
    def terms_of(model, images):
        return {
            name: METHODS[row["method"]](
                model, images, LABELS, reduce=lambda terms: terms, **{k: v for k, v in row.items() if k != "method"}
            )
            for name, row in summing.items()
        }

    terms = terms_of(model, images)
    check(explain_all(model, images, LABELS, summing), {name: it.sum(-1) for name, it in terms.items()})
    smooth = explain_all(model, images, LABELS, {name: row | {"reduce": eigen_smooth} for name, row in summing.items()})
    for name, maps in smooth.items():
        for image_terms, made in zip(np.asarray(terms[name], float), np.asarray(maps), strict=True):
            x = image_terms.reshape(-1, image_terms.shape[-1])
            x -= x.mean(0)
            expected = x @ np.linalg.svd(x)[2][0]
            expected *= np.sign(expected @ x.sum(1)) or 1
            assert np.abs(made.ravel() - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_a_method_by_its_name_is_the_method(images):
    for method in ("grad_cam", "score_cam"):
        maps = explain(ConvNet(), images, LABELS, method=method)
        direct = jax.jit(METHODS[method])(ConvNet(), images, LABELS)
        np.testing.assert_allclose(maps, direct, rtol=1e-4, atol=1e-6)

"""From a picture to a model's input."""

import numpy as np
import pytest
from PIL import Image

from dcls_jax.models import Transform, preprocess
from tests.models.small import small


def test_preprocess_resizes_the_shorter_side_and_crops_the_centre():
    model = small("convnext_tiny")
    gradient = np.tile(np.arange(300, dtype=np.uint8)[None, :, None], (200, 1, 3))
    x = preprocess(Image.fromarray(gradient), model)
    assert x.shape == (1, 224, 224, 3)
    assert x.dtype == np.float32
    pixels = x[0] * np.array(model.transform.std) + np.array(model.transform.mean)
    centre = 255 * pixels[112, 111:113, 0].mean()
    assert centre == pytest.approx(gradient[0, 149:151, 0].mean(), abs=1.5)
    grey = preprocess([Image.new("L", (50, 80), 128)] * 2, model)
    np.testing.assert_allclose(
        grey[1, 0, 0], (128 / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], 1e-5
    )


@pytest.mark.parametrize(
    ("size", "resize"), [((588, 392), 256), ((392, 588), 256), ((500, 375), 235), ((99, 1000), 284)]
)
def test_the_longer_side_is_torchvisions(monkeypatch, size, resize):
    resized = []
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *_: resized.append(size) or Image.new("RGB", size))
    Transform(resize, 224).framed(Image.new("RGB", size))
    # torchvision.transforms.functional._compute_resized_output_size: int(size * long / short)
    assert resized == [tuple(int(resize * side / min(size)) for side in size)]

"""From a picture to a model's input: the size to which torchvision's `Resize` brings its longer side."""

import pytest
from PIL import Image

from dcls_jax.models import Transform


@pytest.mark.parametrize(
    ("size", "resize"), [((588, 392), 256), ((392, 588), 256), ((500, 375), 235), ((99, 1000), 284)]
)
def test_the_longer_side_is_torchvisions(monkeypatch, size, resize):
    resized = []
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *_: resized.append(size) or Image.new("RGB", size))
    Transform(resize, 224).framed(Image.new("RGB", size))
    # torchvision.transforms.functional._compute_resized_output_size: int(size * long / short)
    assert resized == [tuple(int(resize * side / min(size)) for side in size)]

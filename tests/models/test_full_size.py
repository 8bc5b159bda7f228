"""Full-size models with random weights against PyTorch, by timm's key names."""

import jax
import numpy as np
import pytest

from dcls_jax.cam import activations_and_gradients
from dcls_jax.eval.study import study_maps
from dcls_jax.models import create_model, list_models, load_weights


@pytest.mark.parity
@pytest.mark.full_size
@pytest.mark.parametrize("dcls", [False, True])
@pytest.mark.parametrize("name", list_models())
def test_equals_pytorch(name, dcls, assert_close):
    torch = pytest.importorskip("torch")
    originals = pytest.importorskip("tests.torch_models", exc_type=ImportError)

    original = originals.torch_model(name, dcls, seed=1)
    state = {key: value.numpy() for key, value in original.state_dict().items()}
    model = load_weights(create_model(name, dcls=dcls), state)
    # Far from the size for which batch statistics were calibrated, random attention saturates, and any float32
    # arithmetic, torch's too, is off by more than the tolerance.
    side = originals.CALIBRATED
    images = np.random.default_rng(0).standard_normal((1, side, side, 3), np.float32)
    one_hot = np.eye(1000, dtype=np.float32)[[321]]
    channels_first = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    expected = originals.study_maps(original, channels_first, torch.tensor(one_hot))

    logits, (activations, gradients) = jax.jit(lambda m, x: (m(x), activations_and_gradients(m, x, one_hot)))(
        model, images
    )
    # Float32 noise alone is 6e-5 in ResNet50.
    assert_close(logits, expected["logits"], 3e-4)
    assert_close(activations, expected["activations"].permute(0, 2, 3, 1), 3e-4)
    assert_close(gradients, expected["gradients"].permute(0, 2, 3, 1), 3e-4)
    # The map is a sum of both signs, often negative everywhere: its noise is measured by the sum of magnitudes.
    products = expected["gradients"].mean((2, 3), keepdim=True) * expected["activations"]
    maps = study_maps(model, images, one_hot, size=None)
    difference = np.abs(np.asarray(maps) - expected["grad_cam"].numpy()).max()
    assert difference <= 3e-4 * products.abs().mean(1).max()

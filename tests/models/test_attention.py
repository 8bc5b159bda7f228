"""Self-attention against its definition in float64, however the program is compiled."""

import jax
import numpy as np
import pytest

from dcls_jax import compiler_options
from dcls_jax.models.attention import self_attention

pytestmark = pytest.mark.optimised

HEAD_DIM = 32


def exact(qkv):
    batch, height, width, _ = qkv.shape
    q, k, v = qkv.astype(np.float64).reshape(batch, height * width, 3, -1, HEAD_DIM).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) / HEAD_DIM**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    attended = weights / weights.sum(-1, keepdims=True) @ v
    return attended.transpose(0, 2, 1, 3).reshape(batch, height, width, -1)


@pytest.mark.parametrize("options", [{}, compiler_options()], ids=["default", "ours"])
@pytest.mark.parametrize("magnitude", [1, 1e5, 1e15])
def test_activations_of_any_magnitude(assert_close, options, magnitude):
    # At great magnitudes each pixel attends to one other, by more than scores can be wrong.
    qkv = np.random.default_rng(0).standard_normal((2, 7, 7, 3 * 2 * HEAD_DIM), np.float32) * np.float32(magnitude)
    attend = jax.jit(self_attention, static_argnums=1, compiler_options=dict(options))
    assert_close(attend(qkv, HEAD_DIM), exact(qkv), 1e-5)

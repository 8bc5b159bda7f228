"""Which lowering a platform takes."""

import jax
import numpy as np
import pytest

from dcls_jax.methods import FASTEST, LOWERINGS, fastest
from dcls_jax.native import cuda


@pytest.mark.parametrize("size", [7, 14, 28, 56, 112])
@pytest.mark.parametrize("kernel", [3, 7, 17, 31, 51])
def test_auto_is_local_everywhere(size, kernel):
    x = jax.ShapeDtypeStruct((8, size, size, 64), np.dtype(np.float32))
    for platform in (*FASTEST, "METAL"):
        for portable in (False, True):
            assert LOWERINGS[fastest(platform, x, (kernel, kernel), (1, 1), portable=portable)].local


@pytest.mark.parametrize(("kernel", "taken"), [(17, "triton"), (7, "triton"), (3, "direct")])
def test_a_gpu_without_the_native_library_has_a_kernel_too(kernel, taken, monkeypatch):
    monkeypatch.setattr(cuda, "available", lambda: False)
    x = jax.ShapeDtypeStruct((8, 14, 14, 64), np.dtype(np.float32))
    assert fastest("cuda", x, (kernel, kernel), (1, 1)) == taken
    assert fastest("cuda", x, (kernel, kernel), (1, 1), portable=True) in ("shifts", "direct")  # on any machine

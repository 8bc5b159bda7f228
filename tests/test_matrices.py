"""Convolutions that a frozen model keeps as matrices, where a platform has them so: here by a table that says it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax import Conv, Dcls2d, freeze
from dcls_jax.cam import explain
from dcls_jax.eval.metric import frozen_for
from dcls_jax.matrices import MatrixConv
from dcls_jax.methods import FASTEST
from dcls_jax.models import Transform
from tests.conftest import normal, random_model
from tests.models.small import small

pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture
def kept(monkeypatch):
    """In the dtypes that it is called with, convolutions of small images are kept, of up to 32 channels."""

    def keep(*dtypes):
        rows = [
            {"dtype": dtype, "stride": 1, "size": size, "kernel": 5, "order": ["shifts"], "kept": 32 * (size == 7)}
            for dtype in dtypes
            for size in (7, 28)
        ]
        monkeypatch.setitem(FASTEST, "cpu", rows)

    return keep


def matrices(model):
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, MatrixConv)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kept_matrix_is_the_convolution(kept, dtype, stride, monkeypatch, assert_close):
    kept(dtype)
    monkeypatch.setitem(FASTEST, "cpu", [row | {"stride": stride} for row in FASTEST["cpu"]])
    layer = Dcls2d(6, 6, 3, stride, 2, 5, groups=6, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    dense, kept_one = freeze(layer), freeze(layer, images=(1, 8, 7, 6))
    assert isinstance(dense, Conv)
    assert isinstance(kept_one, MatrixConv)
    assert kept_one.matrix.dtype == dtype
    x = normal(2, 8, 7, 6)

    @nnx.jit
    def value_and_gradient(layer, x):
        y, pullback = jax.vjp(layer, x)
        return y, *pullback(jnp.cos(y))

    for a, b in zip(value_and_gradient(kept_one, x), value_and_gradient(dense, x), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert_close(a.astype(jnp.float32), b.astype(jnp.float32), 1e-5 if dtype == "float32" else 2**-7)


@pytest.mark.parametrize("name", ["convnext_tiny", "fastvit_sa24"])
def test_maps_of_a_model_with_matrices_are_the_same(kept, name, assert_close):
    model, images = random_model(partial(small, name)), normal(2, 64, 64, 3)
    without, targets = freeze(model), jnp.arange(2)
    kept("float32")
    frozen = frozen_for(Transform(64, 64))(model)
    assert {it.shape[:2] for it in matrices(frozen)} == {(8, 8)}
    expected, maps = (explain(it, images, targets, method="grad_cam") for it in (without, frozen))
    assert_close(maps, expected, 1e-5)


def test_only_where_the_table_says_so(kept, monkeypatch):
    model = random_model(partial(small, "convnext_tiny"))
    assert not matrices(freeze(model, images=(1, 64, 64, 3)))
    kept("bfloat16")
    assert not matrices(freeze(model, images=(1, 64, 64, 3)))
    kept("float32")
    assert not matrices(freeze(model))
    monkeypatch.setenv("DCLS_JAX_DEPTHWISE", "direct")
    assert not matrices(freeze(model, images=(1, 64, 64, 3)))
    monkeypatch.setenv("DCLS_JAX_DEPTHWISE", "auto")
    assert matrices(freeze(model, images=(1, 64, 64, 3)))
    monkeypatch.setitem(FASTEST, "cpu", [row | {"kept": min(31, row["kept"])} for row in FASTEST["cpu"]])
    assert not matrices(freeze(model, images=(1, 64, 64, 3)))


class Twice(nnx.Module):
    """One layer that meets images of two sizes, and one of its kernels in two places."""

    def __init__(self, rngs):
        self.both = Conv(4, 4, (5, 5), padding=2, groups=4, rngs=rngs)
        self.first = Conv(4, 4, (5, 5), padding=2, groups=4, rngs=rngs)
        self.again = nnx.List([self.first])

    def __call__(self, x):
        return self.again[0](self.first(self.both(x))) + self.both(x[:, 1:, 1:]).mean()


def test_a_layer_that_meets_images_of_two_sizes_stays(kept, assert_close):
    kept("float32")
    model, x = Twice(nnx.Rngs(0)), normal(2, 8, 8, 4)
    frozen = freeze(model, images=x.shape)
    assert isinstance(frozen.both, Conv)
    assert isinstance(frozen.first, MatrixConv)
    assert frozen.first is frozen.again[0]
    assert isinstance(model.first, Conv)
    assert_close(frozen(x), model(x), 1e-5)


def test_other_images_are_refused(kept):
    kept("float32")
    frozen = freeze(Conv(4, 4, (5, 5), padding=2, groups=4, rngs=nnx.Rngs(0)), images=(1, 8, 8, 4))
    with pytest.raises(
        ValueError, match=r"x has shape \(1, 9, 8, 4\), expected \('B', 8, 8, 4\), as the model was frozen"
    ):
        frozen(np.zeros((1, 9, 8, 4), np.float32))

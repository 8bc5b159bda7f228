"""The kernels in Pallas, for TPUs and for GPUs, interpreted; `make aot` compiles them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from dcls_jax import freeze, pallas, primitives, triton
from dcls_jax.methods import LOWERINGS
from dcls_jax.models import create_model, list_models
from dcls_jax.padding import explicit_padding, per_axis
from tests.conftest import slow
from tests.test_lowerings import CASES, exact, values_and_gradients

# A kernel that outgrows the image, one as FastViT's, and uneven strides.
QUICK = [((7, 7), (17, 17), 8, 1), ((15, 14), (7, 7), 3, 2), ((11, 16), (17, 5), ((9, 7), (0, 4)), (2, 1))]
# Side, kernel and stride of every depthwise convolution in our models, each at its own size.
OF_MODELS = [
    *((side, kernel, 1) for side in (7, 14, 28, 56) for kernel in (7, 17)),
    *((side, kernel, 1) for side in (8, 16, 32, 64) for kernel in (1, 3, 7, 17)),
    *((side, kernel, 2) for side in (16, 32, 64) for kernel in (3, 7)),
    *((128, kernel, 2) for kernel in (1, 3)),
]


@pytest.fixture(params=[pallas, triton], ids=lambda module: module.__name__)
def kernels(request):
    return request.param


def check(kernels, size, kernel_size, padding, stride, assert_close, *, channels=6, dtype="float32"):
    x, kernel, direction, (y, _, to_kernel) = exact(size, kernel_size, padding, stride, channels, dtype)
    strides = per_axis(stride, 2, "stride")
    pads = explicit_padding(padding, size=size, kernel_size=kernel_size, stride=strides)

    @jax.jit
    def run(x, kernel, direction):
        interpreted = {"pads": pads, "strides": strides, "interpret": True}
        return (
            kernels.depthwise(x, kernel, **interpreted),
            kernels.kernel_gradient(x, direction, size=kernel_size, **interpreted),
        )

    for result, exactly in zip(run(x, kernel, direction), (y, to_kernel), strict=True):
        assert result.dtype == dtype
        assert_close(result.astype(jnp.float32), exactly, 2e-6 if dtype == "float32" else 2**-8)


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
@pytest.mark.parametrize("case", [case if case in QUICK else slow(case) for case in CASES])
def test_kernels_are_exact(kernels, case, dtype, assert_close):
    check(kernels, *case, assert_close, dtype=dtype)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("side", "kernel", "stride"), OF_MODELS)
def test_kernels_are_exact_in_our_models(kernels, side, kernel, stride, dtype, assert_close):
    check(kernels, (side, side), (kernel, kernel), kernel // 2, stride, assert_close, dtype=dtype)


@pytest.mark.long
@pytest.mark.parametrize(("side", "kernel", "stride"), OF_MODELS)
def test_products_are_exact_in_our_models(side, kernel, stride, assert_close):
    x, cells, direction, expected = exact((side, side), (kernel, kernel), kernel // 2, stride)
    for method in ("bands", "toeplitz") if side <= 16 else ("bands",):
        options = {"padding": kernel // 2, "stride": stride, "method": method}
        for result, exactly in zip(values_and_gradients(x, cells, direction, **options), expected, strict=True):
            assert_close(result, exactly, 1e-5)


@pytest.mark.long
def test_those_are_the_convolutions_of_our_models():
    def convolutions(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive is primitives.depthwise_conv_p:
                yield equation
            for inner in jaxprs_in_params(equation.params):
                yield from convolutions(inner)

    found = set()
    for name in list_models():
        for dcls in (False, True):
            model = nnx.eval_shape(lambda name=name, dcls=dcls: freeze(create_model(name, dcls=dcls)))
            x = jax.ShapeDtypeStruct((1, model.transform.crop, model.transform.crop, 3), jnp.float32)
            for equation in convolutions(jax.make_jaxpr(lambda model, x: model(x))(model, x).jaxpr):
                (_, *size, _), (*cells, _) = (operand.aval.shape for operand in equation.invars)
                assert size[0] == size[1]
                assert cells[0] == cells[1]
                assert equation.params["pads"] == ((cells[0] // 2,) * 2,) * 2
                found.add((size[0], cells[0], equation.params["strides"][0]))
    assert found == set(OF_MODELS)


@pytest.mark.usefixtures("strict")
def test_where_numbers_have_64_bits(kernels, assert_close):
    with jax.enable_x64(True):
        check(kernels, (9, 20), (3, 5), 2, 1, assert_close)


@pytest.mark.parametrize("channels", [slow(128), 200])
def test_channels_that_do_not_fill_the_lanes(kernels, channels, assert_close):
    check(kernels, (9, 8), (3, 5), 2, 1, assert_close, channels=channels)


def test_blocks_of_rows_and_sums_that_do_not_divide_the_image(monkeypatch, assert_close):
    monkeypatch.setattr(pallas, "BLOCK", 2**20)
    monkeypatch.setattr(pallas, "REGISTERS", 9)
    check(pallas, (23, 20), (5, 3), 2, 1, assert_close)
    plan = pallas._planned(jnp.zeros((1, 23, 20, 6)), (5, 3), ((2, 2), (2, 2)), (1, 1))
    assert plan.blocks > 2
    assert plan.out[0] % plan.rows
    assert [len(columns) for columns in plan.strips()] == [8, 8, 6]


@pytest.mark.parametrize("stride", [1, slow((3, 2))])
def test_blocks_of_a_gpu_that_do_not_divide_the_image(stride, monkeypatch, assert_close):
    monkeypatch.setattr(triton, "ROWS", (4,))
    check(triton, (23, 20), (5, 3), 2, stride, assert_close)
    plan = triton._planned(jnp.zeros((1, 23, 20, 6)), (5, 3), ((2, 2), (2, 2)), (1, 1))
    assert plan.blocks == (6, 3, 1)
    assert (plan.rows, plan.columns, plan.channels) == (4, 8, 8)


@pytest.fixture
def asked_anew():
    """Whether Triton is there is kept from the first question on."""
    triton._triton_is_there.cache_clear()
    yield
    triton._triton_is_there.cache_clear()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(("capability", "known"), [("7.5", False), ("8.0", True), ("12.0", True)])
def test_triton_is_not_asked_for_gpus_that_it_does_not_know(capability, known, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert triton.supports("cuda", jnp.zeros((1, 7, 7, 4)), (1, 1)) == known


@pytest.mark.usefixtures("asked_anew")
def test_a_jax_without_triton_has_xlas_own(monkeypatch):
    x = jnp.zeros((1, 7, 7, 4))
    assert triton.supports("cuda", x, (1, 1))
    triton._triton_is_there.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not triton.supports("cuda", x, (1, 1))


@pytest.mark.parametrize("shape", [(0, 7, 5, 4), (2, 2, 5, 4), (2, 7, 5, 0)])
@pytest.mark.parametrize("method", LOWERINGS)
def test_of_nothing_comes_nothing(method, shape):
    """No images, no rows of the output, no channels: no platform's kernel is asked."""
    x, cells, height = jnp.ones(shape), jnp.ones((3, 3, shape[3])), shape[1] - 2
    how = {"lowering": LOWERINGS[method], "pads": ((0, 0), (1, 1)), "strides": (1, 1), "precision": None}
    y = primitives._convolve(x, cells, **how)
    to_kernel = primitives._correlate(x, jnp.ones((shape[0], height, 5, shape[3])), size=(3, 3), **how)
    assert (y.shape, y.size) == ((shape[0], height, 5, shape[3]), 0)
    assert to_kernel.shape == cells.shape
    assert not to_kernel.any()

"""Kernel construction: values worked out by hand, the `dcls` package, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import dcls_jax
from dcls_jax import construct_kernel
from dcls_jax.interpolation import VERSIONS, has_sigma
from dcls_jax.kernel import _contract, _scatter, grid_axes
from dcls_jax.models import load_weights, state_dict
from tests.conftest import slow


def one_element(position, size, version, sigma=None):
    """The kernel of one element of weight 1."""
    dims = len(size)
    p = jnp.asarray(position, jnp.float32).reshape(dims, 1, 1, 1)
    s = None if sigma is None else jnp.full_like(p, sigma)
    return np.asarray(construct_kernel(jnp.ones((1, 1, 1)), p, s, dilated_kernel_size=size, version=version)[0, 0])


def expected_at(size, **cells):
    kernel = np.zeros(size, np.float32)
    for cell, value in cells.items():
        kernel[tuple(int(i) for i in cell[1:].split("_"))] = value
    return kernel


def test_a_kernel_of_two_elements_by_hand():
    """Weight 4 half a row above the centre, weight 1 a row below it and a quarter of a column to the right."""
    weight = jnp.array([[[4.0, 1.0]]])
    rows, columns = [-0.5, 1], [0, 0.25]
    positions = jnp.array([rows, columns]).reshape(2, 1, 1, 2)
    kernel = construct_kernel(weight, positions, dilated_kernel_size=(3, 3), version="v0")
    expected = [
        [0, 2, 0],
        [0, 2, 0],
        [0, 0.75, 0.25],
    ]
    np.testing.assert_array_equal(kernel[0, 0], expected)
    last_axis_first = construct_kernel(weight, positions[::-1], dilated_kernel_size=(3, 3), version="v1")
    np.testing.assert_allclose(last_axis_first[0, 0], expected, atol=1e-6)


def test_v0_counts_axes_from_the_first():
    np.testing.assert_allclose(one_element([1.25, -2], (7, 7), "v0"), expected_at((7, 7), _4_1=0.75, _5_1=0.25))


def test_v1_counts_axes_from_the_last():
    np.testing.assert_allclose(
        one_element([1.25, -2], (7, 7), "v1"), expected_at((7, 7), _1_4=0.75, _1_5=0.25), atol=1e-6
    )


def test_non_square_kernels_centre_each_axis_by_its_own_size():
    np.testing.assert_allclose(one_element([0, 0], (7, 3), "v1"), expected_at((7, 3), _3_1=1), atol=1e-6)
    np.testing.assert_allclose(one_element([1, -3], (7, 3), "v1"), expected_at((7, 3), _0_2=1), atol=1e-6)
    np.testing.assert_allclose(one_element([-3, 1], (7, 3), "v0"), expected_at((7, 3), _0_2=1))


def test_even_sizes_centre_on_the_upper_of_the_two_middle_cells():
    np.testing.assert_allclose(one_element([0], (4,), "v0"), [0, 0, 1, 0])
    np.testing.assert_allclose(one_element([-2], (4,), "v0"), [1, 0, 0, 0])
    np.testing.assert_allclose(one_element([2], (4,), "v0"), [0, 0, 0, 0])


def test_beyond_the_border_v0_loses_weight_and_v1_keeps_it():
    np.testing.assert_allclose(one_element([1.4], (3,), "v0"), [0, 0, 0.6], atol=1e-6)
    np.testing.assert_allclose(one_element([1.4], (3,), "v1"), [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(one_element([2.0], (3,), "v1"), [0, 0, 0])


def test_max_and_gauss_widen_with_sigma():
    np.testing.assert_allclose(one_element([0], (5,), "max", -1.0), [0, 0.25, 0.5, 0.25, 0], atol=1e-6)
    bell = np.exp(-0.5 * (np.arange(-2, 3) / (0.27 + 0.5)) ** 2)
    np.testing.assert_allclose(one_element([0], (5,), "gauss", 0.5), bell / bell.sum(), atol=1e-6)


def test_three_dimensions_follow_the_package():
    assert (grid_axes("v0", 3), grid_axes("v1", 3)) == ((0, 2, 1), (2, 1, 0))
    np.testing.assert_allclose(one_element([1, 0, -1], (3, 3, 3), "v0"), expected_at((3, 3, 3), _2_0_1=1))
    np.testing.assert_allclose(one_element([1, 0, -1], (3, 3, 3), "v1"), expected_at((3, 3, 3), _0_1_2=1), atol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [slow((5,)), (5, 4), slow((4, 3, 5))])
def test_gradients_agree_with_finite_differences(version, size):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        weight = jnp.asarray(rng.standard_normal((2, 3, 4)))
        positions = jnp.asarray(rng.uniform(-1.9, 1.9, (len(size), 2, 3, 4)))
        sigma = jnp.asarray(rng.standard_normal(positions.shape)) if has_sigma(version) else None
        arguments = (weight, positions) if sigma is None else (weight, positions, sigma)

        @jax.jit
        def loss(*arguments):
            return (construct_kernel(*arguments, dilated_kernel_size=size, version=version) ** 3).sum()

        check_grads(loss, arguments, order=1, modes=("fwd", "rev"), eps=1e-7, rtol=1e-4)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("size", [(6,), (5, 4), (4, 3, 5)])
@pytest.mark.parametrize("where", ["anywhere", "integers"])
def test_scatter_and_contraction_are_one_kernel(version, size, where):
    """A CPU scatters, other platforms contract: values and both derivatives, within the grid, at its edge, beyond."""
    rng = np.random.default_rng(2)
    weight = jnp.asarray(rng.standard_normal((3, 2, 7)), jnp.float32)
    drawn = [rng.uniform(-4, 4, weight.shape) for _ in size]
    positions = [jnp.asarray(np.round(p) if where == "integers" else p, jnp.float32) for p in drawn]
    tangents = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), (weight, positions))
    scatter = partial(_scatter, sizes=size, version=version)
    contract = partial(_contract, sigmas=[None] * len(size), sizes=size, version=version)

    @partial(jax.jit, static_argnums=0)
    def derivatives(construct, weight, positions, tangents):
        kernel, pull_back = jax.vjp(construct, weight, positions)
        return *jax.jvp(construct, (weight, positions), tangents), pull_back(jnp.cos(kernel))

    results = (jax.tree.leaves(derivatives(f, weight, positions, tangents)) for f in (scatter, contract))
    for ours, other in zip(*results, strict=True):
        assert jnp.abs(other).max() > 0 or where == "integers"
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


def test_memory_is_elements_times_the_sum_of_the_sides():
    weight = jax.ShapeDtypeStruct((512, 512, 5), jnp.float32)
    positions = jax.ShapeDtypeStruct((2, 512, 512, 5), jnp.float32)
    construct = jax.jit(lambda w, p: construct_kernel(w, p, dilated_kernel_size=(7, 7), version="v0"))
    memory = construct.lower(weight, positions).compile().memory_analysis()
    elements, floats = 512 * 512 * 5, 4
    assert memory.temp_size_in_bytes <= 1.5 * elements * (7 + 7) * floats  # a dense grid per element: 49 of them


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "v2"}, "version"),
        ({"dilated_kernel_size": (7, 7, 7, 7)}, "dilated_kernel_size"),
        ({"positions": jnp.zeros((3, 2, 1, 4))}, "positions has shape"),
        ({"version": "gauss"}, "sigma must be given"),
        ({"sigma": jnp.zeros((2, 2, 1, 4))}, "sigma must be None"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message):
    valid = {"dilated_kernel_size": (7, 7), "version": "v1", "positions": jnp.zeros((2, 2, 1, 4))}
    with pytest.raises(ValueError, match=message):
        construct_kernel(jnp.zeros((2, 1, 4)), **(valid | arguments))


def _cases():
    """The package's own sizes: it is right where all sides are equal, and for v0 in 2-D."""
    for version in VERSIONS:
        yield from ((version, (s,), groups) for s in (7, 6) for groups in (1, 4))
        yield from ((version, (s, s), groups) for s in (7, 6, 17) for groups in (1, 4))
        yield from ((version, (s, s, s), 1) for s in (5, 4))
    yield "v0", (7, 4), 1


@pytest.mark.parity
@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
@pytest.mark.parametrize("form", ["Dcls2dK1d", "Dcls3_1d"])
def test_forms_with_elements_along_one_axis_equal_the_packages(form, version, assert_close):
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("DCLS.construct.modules")
    if form == "Dcls3_1d" and version == "v0":
        pytest.skip("the package has none either")
    size = (6, 5, 8)[: 2 if form == "Dcls2dK1d" else 3]
    for flat_dim in (0, 1) if form == "Dcls2dK1d" else (None,):
        options = {"dilated_kernel_size": 5, "groups": 2, "version": version, "padding": 2}
        options |= {"dense_kernel_size": (3, 1)} if flat_dim is None else {"flat_dim": flat_dim}
        torch.manual_seed(0)
        theirs = getattr(modules, form)(4, 6, 3, **options)
        with torch.no_grad():
            theirs.P.uniform_(-2, 2)
        ours = getattr(dcls_jax, form)(4, 6, 3, **options, rngs=nnx.Rngs(0))
        ours = load_weights(ours, {name: value.detach().numpy() for name, value in theirs.state_dict().items()})
        x = np.random.default_rng(0).standard_normal((2, 4, *size)).astype(np.float32)
        expected = theirs(torch.tensor(x))
        expected.square().sum().backward()
        y, pullback = jax.vjp(lambda layer, x: layer(x), ours, jnp.asarray(np.moveaxis(x, 1, -1)))
        assert_close(y, np.moveaxis(expected.detach().numpy(), 1, -1), 1e-5)
        gradient, _ = pullback(2 * y)
        for name, value in state_dict(gradient).items():
            assert_close(value, getattr(theirs, name).grad.numpy(), 1e-4)
        for name, value in state_dict(ours).items():
            np.testing.assert_array_equal(value, getattr(theirs, name).detach().numpy())


@pytest.mark.parity
@pytest.mark.parametrize(("version", "size", "groups"), list(_cases()))
@pytest.mark.parametrize("where", ["inside", "limits", "beyond", "integers"])
def test_equals_the_dcls_package(version, size, groups, where):
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("DCLS.construct.modules")
    dims, out_channels, in_channels, count = len(size), 4, 8, 5
    rng = np.random.default_rng(1)
    shape = (out_channels, in_channels // groups, count)
    limit = size[0] // 2
    spread = {
        "inside": lambda s: rng.uniform(-limit, limit, s),
        "limits": lambda s: rng.choice([-limit, limit], s) + 0.0,
        "beyond": lambda s: rng.uniform(-limit - 1.5, limit + 1.5, s),
        "integers": lambda s: rng.integers(-limit, limit + 1, s) + 0.0,
    }[where]
    weight = rng.standard_normal(shape).astype(np.float32)
    positions = spread((dims, *shape)).astype(np.float32)
    sigma = rng.standard_normal((dims, *shape)).astype(np.float32) if has_sigma(version) else None
    direction = rng.standard_normal((*shape[:2], *size)).astype(np.float32)

    construct = getattr(modules, f"ConstructKernel{dims}d")(out_channels, in_channels, groups, count, size, version)
    arguments = [a for a in (weight, positions, sigma) if a is not None]

    def theirs(dtype):
        inputs = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arguments]
        kernel = construct(*inputs, *([None] if sigma is None else []))
        (kernel * torch.tensor(direction, dtype=dtype)).sum().backward()
        return [kernel.detach().numpy(), *(tensor.grad.numpy() for tensor in inputs)]

    def ours(*arguments):
        return construct_kernel(*arguments, dilated_kernel_size=size, version=version)

    kernel, pullback = jax.vjp(ours, *map(jnp.asarray, arguments))
    results = [kernel, *pullback(jnp.asarray(direction))]
    # Where an element barely touches the grid, the package's own rounding exceeds 1e-5: then twice that is allowed.
    for result, exact, single in zip(results, theirs(torch.float64), theirs(torch.float32), strict=True):
        scale = np.abs(exact).max() or 1.0
        rounding = np.abs(single - exact).max() / scale
        assert np.abs(result - exact).max() / scale <= max(1e-5, 2 * rounding)

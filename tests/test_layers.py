"""The NNX layers: against a dense convolution, the package's initialisation, sharing, freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax import Conv, Dcls1d, Dcls2d, Dcls3d, DclsConfig, Positions, freeze
from dcls_jax.freezing import dcls_layers
from tests.conftest import normal

LAYERS = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}


def image(dims, channels=6, size=9):
    return normal(2, *[size] * dims, channels)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_layer_is_a_convolution_with_its_kernel(dims, version, groups, assert_close):
    layer = LAYERS[dims](
        6, 6, 4, 2, 2, dilated_kernel_size=5, groups=groups, version=version, padding_mode="circular", rngs=nnx.Rngs(0)
    )
    assert isinstance(nnx.eval_shape(freeze, layer), Conv)

    @jax.jit
    def outputs(layer, x):
        padded = jnp.pad(x, ((0, 0), *[(2, 2)] * dims, (0, 0)), mode="wrap")
        spatial = "DHW"[-dims:]
        dense = jax.lax.conv_general_dilated(
            padded,
            layer.construct(),
            (2,) * dims,
            "VALID",
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=groups,
        )
        return layer(x), dense + layer.bias[...], freeze(layer)(x)

    y, expected, frozen = outputs(layer, image(dims))
    assert y.shape == (2, *[5] * dims, 6)
    assert_close(y, expected, 1e-5)
    assert_close(frozen, y, 1e-6)


def test_initialisation_is_the_packages():
    layer = Dcls2d(64, 64, 5, dilated_kernel_size=7, version="gauss", rngs=nnx.Rngs(0))
    bound = 1 / np.sqrt(64 * 5)
    for values in (layer.weight[...], layer.bias[...]):
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
    assert layer.positions.P[...].std() == pytest.approx(0.5, rel=0.02)
    assert np.unique(layer.positions.SIG[...]) == pytest.approx(0.23)
    assert not Dcls2d(2, 2, 5, version="max", rngs=nnx.Rngs(0)).positions.SIG[...].any()
    assert np.abs(Dcls2d(64, 64, 5, dilated_kernel_size=1, rngs=nnx.Rngs(0)).positions.P[...]).max() == 0


@pytest.mark.parametrize(("version", "limits"), [("v0", (3, 2)), ("v1", (2, 3)), ("max", (2, 3)), ("gauss", (2, 3))])
def test_clamp_brings_positions_back_to_the_border_of_their_axis(version, limits):
    layer = Dcls2d(2, 2, 3, dilated_kernel_size=(7, 4), version=version, rngs=nnx.Rngs(0))
    layer.positions.P[...] = 100 * jnp.sign(layer.positions.P[...])
    layer.clamp()
    for row, limit in zip(layer.positions.P[...], limits, strict=True):
        assert np.unique(row).tolist() == [-limit, limit]


@pytest.mark.parametrize("version", ["v1", "max", "gauss"])
def test_elements_of_a_row_spread_over_it(version):
    layer = Dcls2d(1, 1, 6, dilated_kernel_size=(1, 17), version=version, rngs=nnx.Rngs(0))
    gradient = nnx.grad(lambda layer: (layer.construct() ** 2).sum())(layer)
    assert np.abs(layer.positions.P[0]).min() > 0
    assert np.abs(gradient.positions.P[0]).min() > 0
    assert not layer.positions.P[1].any()


class Shared(nnx.Module):
    """Two layers at the same positions."""

    def __init__(self, rngs):
        self.positions = Positions((4, 1, 3), (5, 5), "v1", rngs=rngs)
        self.blocks = nnx.List(
            Dcls2d(4, 4, 3, padding=2, dilated_kernel_size=5, groups=4, shared_positions=True, rngs=rngs)
            for _ in range(2)
        )

    def __call__(self, x):
        for block in self.blocks:
            x = block(x, self.positions)
        return x


def test_shared_positions_are_one_array_with_one_gradient(assert_close):
    model, x = Shared(nnx.Rngs(0)), image(2, 4)
    assert {owner for _, _, owner in dcls_layers(model)} == {("positions",)}
    gradients = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
    assert gradients["positions"]["P"][...].shape == (2, 4, 1, 3)
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 1 + 2 * 2
    frozen = freeze(model)
    assert frozen.positions is None
    assert_close(frozen(x), model(x), 1e-6)
    assert model.positions is not None  # the model itself stays as it was


def test_runs_in_tree_mode(assert_close):
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        model, x = Shared(nnx.Rngs(0)), image(2, 4)
        graphdef, state = nnx.split(model)
        assert_close(jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x), model(x), 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 4}, "groups"),
        ({"kernel_count": 0}, "kernel_count"),
        ({"version": "v7"}, "version"),
        ({"dilated_kernel_size": (3, 3, 3)}, "dilated_kernel_size"),
        ({"stride": 0}, "stride"),
        ({"padding_mode": "mirror"}, "padding_mode"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dcls2d(**({"in_channels": 6, "out_channels": 6, "kernel_count": 3, "rngs": nnx.Rngs(0)} | arguments))


def test_a_sharing_layer_without_positions_says_so():
    layer = Dcls2d(2, 2, 3, shared_positions=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="shares its positions"):
        layer(image(2, 2))
    with pytest.raises(ValueError, match="no module around"):
        freeze(layer)


def test_config_checks_its_values():
    with pytest.raises(ValueError, match="kernel_count"):
        DclsConfig(0, 7, "v1")
    with pytest.raises(ValueError, match="version"):
        DclsConfig(3, 7, "v9")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.layers import Dcls1d, Dcls2d, Dcls2dK1d, Dcls3_1d, Dcls3d, Positions
from dcls_jax.training import clamp_positions, repulsive_loss


class Net(nnx.Module):
    def __init__(self, version: str):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Dcls2d(4, 4, 3, dilated_kernel_size=(7, 4), groups=4, version=version, rngs=rngs)])
        self.head = nnx.Linear(4, 2, rngs=rngs)


def by_path(tree) -> dict[str, object]:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(tree)}


def test_clamp_keeps_positions_on_the_grid():
    model = Net("v1")
    positions = model.layers[0].positions
    positions.P[...] = jnp.stack([jnp.full((4, 1, 3), 9.0), jnp.full((4, 1, 3), -9.0)])
    weight = model.layers[0].weight[...]
    clamp_positions(model)
    np.testing.assert_array_equal(positions.P[0], 2)  # which moves along the last axis, of four cells
    np.testing.assert_array_equal(positions.P[1], -3)
    np.testing.assert_array_equal(model.layers[0].weight[...], weight)


def test_clamp_inside_jit():
    graphdef, params = nnx.split(Net("v1"))

    @jax.jit
    def step(params):
        model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf + 100, params))
        clamp_positions(model)
        return nnx.state(model)

    after = by_path(step(params))
    np.testing.assert_array_equal(after["layers.0.positions.P"][0], 2)
    np.testing.assert_allclose(after["head.bias"], 100)


R = nnx.Rngs(0)
LIMITS = {  # by the axis along which each row moves
    "1-D": (lambda: Dcls1d(2, 2, 3, dilated_kernel_size=9, rngs=R), [4]),
    "2-D, v0": (lambda: Dcls2d(2, 2, 3, dilated_kernel_size=(7, 5), version="v0", rngs=R), [3, 2]),
    "2-D, max": (lambda: Dcls2d(2, 2, 3, dilated_kernel_size=(7, 5), version="max", rngs=R), [2, 3]),
    "3-D, v0": (lambda: Dcls3d(2, 2, 3, dilated_kernel_size=(7, 5, 3), version="v0", rngs=R), [3, 1, 2]),
    "3-D, gauss": (lambda: Dcls3d(2, 2, 3, dilated_kernel_size=(7, 5, 3), version="gauss", rngs=R), [1, 2, 3]),
    "flat": (lambda: Dcls2dK1d(2, 2, 3, dilated_kernel_size=9, rngs=R), [4]),
    "partial": (lambda: Dcls3_1d(2, 2, 3, dense_kernel_size=(3, 1), dilated_kernel_size=5, rngs=R), [2]),
}


@pytest.mark.parametrize("layer", LIMITS)
def test_every_layer_is_clamped_by_its_axes(layer):
    build, limits = LIMITS[layer]
    model = nnx.Dict(layer=build())
    model.layer.positions.P[...] = jnp.full_like(model.layer.positions.P[...], 100)
    clamp_positions(model)
    for row, limit in zip(model.layer.positions.P[...], limits, strict=True):
        np.testing.assert_array_equal(row, limit)


def with_positions(p: np.ndarray) -> Positions:
    positions = Positions(p.shape[1:], (17,) * len(p), "v1", rngs=nnx.Rngs(0))
    positions.P[...] = jnp.asarray(p, jnp.float32)
    return positions


def test_repulsion_is_the_mean_over_pairs_of_one_minus_distance():
    # Two kernels of three elements on a line: distances 0.25, 0.75, 1 and 2, 3, 5.
    p = np.zeros((2, 2, 1, 3))
    p[0, :, 0] = [[0, 0.25, 1], [-2, 0, 3]]
    expected = (0.75 + 0.25 + 0) / 6
    assert repulsive_loss(with_positions(p)) == pytest.approx(expected)
    apart = with_positions(3 * np.arange(6.0).reshape(1, 2, 1, 3))
    assert repulsive_loss(nnx.Dict(a=with_positions(p), b=apart)) == pytest.approx(expected / 2)


def test_shared_positions_count_once():
    near, far = with_positions(np.zeros((2, 1, 1, 2))), with_positions(9 * np.arange(4.0).reshape(2, 1, 1, 2))
    assert repulsive_loss(nnx.Dict(a=near, b=near, c=far)) == pytest.approx(1 / 2)


@pytest.mark.parametrize("model", [with_positions(np.zeros((2, 3, 1, 1))), nnx.Linear(2, 2, rngs=nnx.Rngs(0))])
def test_nothing_repels_where_there_are_no_pairs(model):
    assert repulsive_loss(model) == 0
    gradients = nnx.grad(repulsive_loss)(model)
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_elements_push_each_other_away_but_not_from_one_place():
    together = nnx.grad(repulsive_loss)(with_positions(np.zeros((2, 3, 1, 4))))
    np.testing.assert_array_equal(together.P[...], 0)
    # Of three elements, one pair is nearer than 1: at distance 0.5, in the direction (3, 4) / 5.
    p = np.array([[[[0, 0.3, 9]]], [[[0, 0.4, 9]]]])
    gradients = nnx.grad(repulsive_loss)(with_positions(p)).P[...]
    np.testing.assert_allclose(gradients[:, 0, 0], np.array([[0.6, -0.6, 0], [0.8, -0.8, 0]]) / 3, rtol=1e-5)

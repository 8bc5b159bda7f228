import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcls_jax.layers import Dcls2d
from dcls_jax.training import clamp_positions, optimiser, position_labels


class Net(nnx.Module):
    def __init__(self, version: str):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Dcls2d(4, 4, 3, dilated_kernel_size=(7, 4), groups=4, version=version, rngs=rngs)])
        self.head = nnx.Linear(4, 2, rngs=rngs)


def by_path(tree) -> dict[str, object]:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(tree)}


@pytest.mark.parametrize(("version", "leaves"), [("v1", {"P"}), ("gauss", {"P", "SIG"})])
def test_positions_are_labelled_by_path(version, leaves):
    labels = {
        jax.tree_util.keystr(path): label
        for path, label in jax.tree_util.tree_leaves_with_path(position_labels(nnx.state(Net(version))))
    }
    positions = {path for path, label in labels.items() if label == "positions"}
    assert len(labels) == 4 + len(leaves)
    assert len(positions) == len(leaves)
    assert all(any(f"'{leaf}'" in path for leaf in leaves) for path in positions)


def test_labels_of_plain_dicts():
    tree = {"stages": [{"positions": {"P": 0.0}}, {"P_other": 0.0}], "weight": 0.0}
    assert position_labels(tree) == {
        "stages": [{"positions": {"P": "positions"}}, {"P_other": "rest"}],
        "weight": "rest",
    }


def test_positions_learn_faster_and_only_matrices_decay():
    params = {"P": jnp.full((2, 3), 4.0), "weight": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0)}
    optimise = optimiser(0.01, weight_decay=0.5)

    def update(gradient: float) -> dict[str, jax.Array]:
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
        return optimise.update(gradients, optimise.init(params), params)[0]

    # The first step of Adam is the learning rate against the sign of the gradient; decay adds rate * decay * value.
    for gradient, (p, weight, bias) in {1.0: (-0.05, -0.03, -0.01), 0.0: (0.0, -0.02, 0.0)}.items():
        updates = update(gradient)
        np.testing.assert_allclose(updates["P"], p, rtol=1e-5)
        np.testing.assert_allclose(updates["weight"], weight, rtol=1e-5)
        np.testing.assert_allclose(updates["bias"], bias, rtol=1e-5)


def test_schedule_and_factor():
    schedule = optax.linear_schedule(0.1, 0.3, 2)
    params = {"P": jnp.zeros(1), "weight": jnp.zeros((1, 1))}
    optimise = optimiser(schedule, weight_decay=0.0, position_factor=2.0)
    state = optimise.init(params)
    for rate in (0.1, 0.2, 0.3):
        updates, state = optimise.update(jax.tree.map(jnp.ones_like, params), state, params)
        np.testing.assert_allclose(updates["weight"], -rate, rtol=1e-4)
        np.testing.assert_allclose(updates["P"], -2 * rate, rtol=1e-4)


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

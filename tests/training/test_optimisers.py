import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcls_jax.layers import Dcls2d
from dcls_jax.models import create_model
from dcls_jax.training import layers_in_order, optimiser, position_labels
from dcls_jax.training.paths import paths_in


class Net(nnx.Module):
    def __init__(self, version: str):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Dcls2d(4, 4, 3, dilated_kernel_size=(7, 4), groups=4, version=version, rngs=rngs)])
        self.head = nnx.Linear(4, 2, rngs=rngs)


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


TREE = {
    "stem": {"kernel": jnp.full((2, 2), 3.0)},
    "blocks": [{"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}, {"kernel": jnp.full((2, 2), 3.0)}],
    "positions": {"P": jnp.full((2, 2), 3.0), "SIG": jnp.full((2, 2), 3.0)},
    "fc": {"kernel": jnp.full((2, 2), 3.0)},
}


def first_update(gradient: float = 1.0, **options) -> dict:
    optimise = optimiser(0.01, options.pop("weight_decay", 0.0), **options)
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), TREE)
    return optimise.update(gradients, optimise.init(TREE), TREE)[0]


def test_layer_decay_keeps_the_position_factor():
    layer_of = layers_in_order(["stem", "blocks.0", "blocks.1"])
    updates = first_update(layer_decay=0.5, layer_of=lambda path: 1 if path[0] == "positions" else layer_of(path))
    rates = jax.tree.map(lambda leaf: float(-leaf.ravel()[0]) / 0.01, updates)
    assert rates["stem"]["kernel"] == pytest.approx(0.125, rel=1e-5)
    assert rates["blocks"][0]["kernel"] == rates["blocks"][0]["bias"] == pytest.approx(0.25, rel=1e-5)
    assert rates["blocks"][1]["kernel"] == pytest.approx(0.5, rel=1e-5)
    assert rates["fc"]["kernel"] == pytest.approx(1, rel=1e-5)
    assert rates["positions"]["P"] == rates["positions"]["SIG"] == pytest.approx(5 * 0.25, rel=1e-5)


def test_layers_of_a_model_of_ours():
    model = nnx.eval_shape(lambda: create_model("convnext_tiny", dcls=True, depths=(1, 2), dims=(4, 8)))
    layer_of = layers_in_order(model.chain)
    assert model.chain[:2] == ["stem", "stages.0.blocks.0"]
    layers = {".".join(map(str, path)): layer_of(path) for path in paths_in(nnx.state(model, nnx.Param))}
    assert layers["stem.conv.kernel"] == 0
    assert layers["stages.0.positions.P"] == layers["stages.0.blocks.0.dwconv.weight"] == 1
    assert layers["stages.1.positions.P"] == layers["stages.1.downsample.conv.kernel"] == 2
    assert layers["stages.1.blocks.0.gamma"] == 3
    assert layers["stages.1.blocks.1.gamma"] == 4
    assert layers["fc.kernel"] == layers["norm.scale"] == 5


def test_frozen_parts_stay_and_take_no_memory():
    updates = first_update(weight_decay=0.1, frozen=["stem", "blocks.*.kernel"])
    moves = jax.tree.map(lambda leaf: bool(jnp.abs(leaf).max() > 0), updates)
    assert moves == {
        "stem": {"kernel": False},
        "blocks": [{"kernel": False, "bias": True}, {"kernel": False}],
        "positions": {"P": True, "SIG": True},
        "fc": {"kernel": True},
    }

    def numbers(**options) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(optimiser(0.01, 0.1, **options).init(TREE)))

    assert numbers(frozen=["stem"]) == numbers() - 8


def test_a_frozen_pattern_that_matches_nothing_says_what_there_is():
    with pytest.raises(ValueError, match=r"frozen: 'stages' matches none of blocks.0.bias, .*stem.kernel"):
        first_update(frozen=["stem", "stages"])


def test_lamb_clips_all_parameters_together_and_trusts_what_decays():
    # 22 numbers, each of gradient 10: clipped to 1 / sqrt(22); Adam's first step is 1 for each, plus decay for weights.
    updates = first_update(10.0, rule="lamb", weight_decay=0.1)
    share = np.sqrt(1 / 22)
    adam = share / (share + 1e-6)
    np.testing.assert_allclose(updates["blocks"][0]["bias"], -0.01 * adam, rtol=1e-5)
    np.testing.assert_allclose(updates["positions"]["P"], -0.05 * adam, rtol=1e-5)
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.03, rtol=1e-5)  # as long as the parameters, times the rate
    # Without decay there is no trust ratio either, in timm.
    np.testing.assert_allclose(first_update(10.0, rule="lamb")["fc"]["kernel"], -0.01 * adam, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "sgd"}, r"rule \(='sgd'\) must be one of adamw, lamb"),
        ({"weight_decay": -1}, r"weight_decay \(=-1\) must not be negative"),
        ({"position_factor": -1}, r"position_factor \(=-1\) must not be negative"),
        ({"layer_decay": 0}, r"layer_decay \(=0\) must be above 0 and at most 1"),
        ({"layer_decay": 0.5}, r"layer_decay \(=0.5\) needs layer_of"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        first_update(**options)

"""Convolutions of foreign models made DCLS: which, with what padding, and with their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcls_jax import Conv, Dcls1d, Dcls2d, Dcls3d, DclsConfig, freeze
from dcls_jax.models import create_model
from dcls_jax.training import clamp_positions, optimiser, replace_convolutions, replaced, repulsive_loss
from tests.conftest import normal, random_model


class Block(nnx.Module):
    def __init__(self, dim: int, size: int, stride: int, rngs: nnx.Rngs):
        self.dwconv = nnx.Conv(dim, dim, (size, size), strides=stride, feature_group_count=dim, rngs=rngs)
        self.pwconv = nnx.Conv(dim, dim, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pwconv(jax.nn.relu(self.dwconv(x)))


class Foreign(nnx.Module):
    """Two stages of two blocks; the last block of the second sees farther."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.stages = nnx.List(
            nnx.List([Block(4, 3, 1, rngs), Block(4, 3, 2, rngs)]) if i == 0 else
            nnx.List([Block(4, 3, 1, rngs), Block(4, 5, 1, rngs)])
            for i in range(2)
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x


def foreign() -> Foreign:
    return random_model(lambda: Foreign(nnx.Rngs(0)))


IMAGES = normal(2, 16, 15, 3)
DEPTHWISE = [f"stages.{i}.{j}.dwconv" for i in range(2) for j in range(2)]


def of(config: DclsConfig, model: nnx.Module, **options) -> nnx.Module:
    return replace_convolutions(model, config, rngs=nnx.Rngs(1), **options)


def test_depthwise_convolutions_are_replaced_and_the_model_is_left_alone(assert_close):
    model = foreign()
    before = model(IMAGES)
    new = of(DclsConfig(6, 7, "v1"), model)
    assert list(replaced(new)) == DEPTHWISE
    assert replaced(model) == {}
    assert new(IMAGES).shape == before.shape
    assert {layer.weight.shape for layer in replaced(new).values()} == {(4, 1, 6)}
    weights = np.concatenate([layer.weight[...].ravel() for layer in replaced(new).values()])
    assert 0.01 < weights.std() < 0.03
    jax.tree.map(np.testing.assert_array_equal, nnx.state(new.stem), nnx.state(model.stem))
    nnx.state(new.stem)["kernel"][...] += 1
    assert_close(model(IMAGES), before, 1e-6)
    assert_close(freeze(new)(IMAGES), new(IMAGES), 1e-5)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("stages.0.*.dwconv", DEPTHWISE[:2]),
        ("*conv", [f"stages.{i}.{j}.{name}" for i in range(2) for j in range(2) for name in ("dwconv", "pwconv")]),
        (lambda path, layer: path[0] == "stem", ["stem"]),
        (lambda path, layer: layer.kernel.shape[:2] == (5, 5), ["stages.1.1.dwconv"]),
    ],
)
def test_what_is_chosen(where, expected):
    assert list(replaced(of(DclsConfig(2, 7, "v1"), foreign(), where=where))) == expected


def test_what_chooses_nothing_lists_what_there_is():
    with pytest.raises(ValueError, match=r"where \(='stage.*'\) chooses none .*; stem \(3x3, 3 to 4, groups 1\)"):
        of(DclsConfig(2, 7, "v1"), foreign(), where="stage.*")
    with pytest.raises(ValueError, match="no depthwise one larger than 1x1 of the model's convolutions: it has none"):
        of(DclsConfig(2, 7, "v1"), nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("version", ["v0", "v1", "max"])
def test_kept_weights_leave_the_output(version, share, assert_close):
    model = foreign()
    new = of(DclsConfig(9, 7, version), model, where=lambda path, layer: layer.kernel.shape[:2] == (3, 3),
             keep_weights=True, share_positions=share)  # fmt: skip
    assert list(replaced(new)) == [*DEPTHWISE[:3], "stem"]
    assert_close(new(IMAGES), model(IMAGES), 1e-5)


@pytest.mark.parametrize(("version", "size"), [("v0", 7), ("v1", 3), ("v1", 7), ("max", 31)])
def test_kept_positions_learn(version, size):
    conv = random_model(lambda: nnx.Conv(4, 4, (3, 3), padding="CIRCULAR", feature_group_count=4, rngs=nnx.Rngs(0)))
    layer = of(DclsConfig(9, size, version), conv, keep_weights=True)
    slopes = nnx.grad(lambda layer: jnp.square(layer(normal(2, 33, 33, 4))).sum())(layer)
    assert float(jnp.abs(slopes.positions.P[...]).min()) > 0


LAYERS = {
    "1-D": lambda r: nnx.Conv(4, 4, (3,), feature_group_count=4, rngs=r),
    "causal": lambda r: nnx.Conv(4, 4, (3,), padding="CAUSAL", kernel_dilation=2, feature_group_count=4, rngs=r),
    "3-D": lambda r: nnx.Conv(4, 8, (3, 2, 3), feature_group_count=2, use_bias=False, rngs=r),
    "even": lambda r: nnx.Conv(4, 4, (2, 4), feature_group_count=4, rngs=r),
    "valid": lambda r: nnx.Conv(4, 6, (3, 2), padding="VALID", strides=(2, 1), rngs=r),
    "pairs": lambda r: nnx.Conv(4, 4, (3, 3), padding=((2, 0), (1, 1)), strides=3, rngs=r),
    "number": lambda r: nnx.Conv(4, 4, (4, 4), padding=1, strides=4, rngs=r),
    "circular": lambda r: nnx.Conv(4, 4, (3, 3), padding="CIRCULAR", rngs=r),
    "reflect": lambda r: nnx.Conv(4, 4, (3, 3), padding="REFLECT", kernel_dilation=(1, 2), rngs=r),
    "same, strided": lambda r: nnx.Conv(4, 4, (3, 3), strides=2, kernel_dilation=2, rngs=r),
    "ours": lambda r: Conv(4, 4, (3, 3), padding=1, stride=2, groups=4, padding_mode="replicate", rngs=r),
    "ours, same": lambda r: Conv(4, 4, (3, 3), padding="SAME", stride=2, bias=False, rngs=r),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_padding(layer, assert_close):
    conv = random_model(lambda: layer(nnx.Rngs(0)))
    size = conv.kernel.shape[:-2]
    new = of(DclsConfig(int(np.prod(size)), 5, "v1"), conv, where=lambda *_: True, keep_weights=True)
    assert type(new) is {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}[len(size)]
    for length in (9, 10):
        x = normal(2, *(length + i for i in range(len(size))), 4)
        assert_close(new(x), conv(x), 1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda r: nnx.Conv(4, 4, (4, 4), strides=4, rngs=r), "layer: what 'SAME' pads .* depends on the image"),
        (lambda r: nnx.Conv(4, 4, (3, 3), input_dilation=2, rngs=r), "layer: a DCLS has no mask and no input_dilation"),
        (lambda r: nnx.Conv(4, 4, (3, 3), mask=jnp.ones((3, 3, 4, 4)), rngs=r), "layer: a DCLS has no mask"),
        (lambda r: nnx.Conv(4, 4, (9, 9), padding=1, rngs=r), "layer: its output would be larger with dilated"),
        (lambda r: nnx.Conv(4, 4, (3,) * 4, rngs=r), "layer: no kernel of one layer in 1 to 3"),
    ],
)
def test_what_has_no_form(layer, message):
    model = nnx.Dict(layer=layer(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        of(DclsConfig(9, 5, "v1"), model, where="layer")


def test_weights_that_cannot_be_kept():
    with pytest.raises(ValueError, match=r"stages.0.0.dwconv: to keep its weights, kernel_count \(=8\) must be its 9"):
        of(DclsConfig(8, 7, "v1"), foreign(), keep_weights=True)
    with pytest.raises(ValueError, match=r"stages.1.1.dwconv: .* dilated_kernel_size \(=3\) must be at least 5"):
        of(DclsConfig(25, 3, "v1"), foreign(), where="stages.1.1.dwconv", keep_weights=True)


def test_positions_are_shared_by_stage():
    new = of(DclsConfig(6, 7, "v1"), foreign(), share_positions=True)
    at = [id(layer.positions) for layer in replaced(new).values()]
    assert at[0] == at[1] != at[2] == at[3]
    positions = [path for path, _ in nnx.to_flat_state(nnx.state(new, nnx.Param)) if path[-1] == "P"]
    assert len(positions) == 2
    by_name = of(DclsConfig(6, 7, "v1"), foreign(), share_positions=lambda path: "all")
    assert len({id(layer.positions) for layer in replaced(by_name).values()}) == 1
    # Kept weights of 3x3 and 5x5 kernels start at different places.
    kept = of(DclsConfig(9, 7, "v1"), foreign(), where=lambda path, layer: path[-1] == "dwconv" and path[2] == 0,
              keep_weights=True, share_positions=lambda path: "all")  # fmt: skip
    assert len({id(layer.positions) for layer in replaced(kept).values()}) == 1


def test_one_module_at_two_places_stays_one():
    conv = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
    new = of(DclsConfig(6, 7, "v1"), nnx.Dict(a=conv, b=conv), where="b")
    assert new.a is new.b
    assert isinstance(new.a, Dcls2d)


@pytest.mark.slow
def test_a_step_trains_shared_positions_once():
    graphdef, params, rest = nnx.split(of(DclsConfig(6, 7, "v1"), foreign(), share_positions=True), nnx.Param, ...)
    optimise = optimiser(1e-2, 0.05)

    @jax.jit
    def step(params, state):
        def loss(params):
            model = nnx.merge(graphdef, params, rest)
            return jnp.square(model(IMAGES) - 1).mean() + repulsive_loss(model) ** 2

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimise.update(gradients, state, params)
        model = nnx.merge(graphdef, optax.apply_updates(params, updates), rest)
        clamp_positions(model)
        return nnx.state(model, nnx.Param), state, value

    state, losses = optimise.init(params), []
    before = nnx.to_flat_state(params)
    for _ in range(4):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    moved = [float(jnp.abs(new[...] - old[...]).max()) for (_, new), (_, old) in
             zip(nnx.to_flat_state(params), before, strict=True)]  # fmt: skip
    assert min(moved) > 0


@pytest.mark.slow
def test_a_model_of_ours_as_the_study_has_it():
    shape = {"depths": (1, 2), "dims": (4, 8), "num_classes": 3}
    new = of(DclsConfig(5, 9, "v1"), create_model("convnext_tiny", **shape), share_positions=True)
    assert list(replaced(new)) == ["stages.0.blocks.0.dwconv", "stages.1.blocks.0.dwconv", "stages.1.blocks.1.dwconv"]
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(new, nnx.Param)))
    assert count == sum(
        leaf.size
        for leaf in jax.tree.leaves(
            nnx.state(create_model("convnext_tiny", dcls=DclsConfig(5, 9, "v1"), **shape), nnx.Param)
        )
    )

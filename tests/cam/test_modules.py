"""Flax modules explained at the path of any submodule, against the same cut written by hand."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from dcls_jax.cam import (
    METHODS,
    DeadMapWarning,
    explain,
    explain_all,
    from_functions,
    from_module,
    tokens_to_grid,
)
from dcls_jax.cam.pytree import pytree
from dcls_jax.models.activations import gelu
from dcls_jax.modules import modules_by_path
from tests.conftest import normal, random_model, slow
from tests.models.small import small

LABELS = np.array([1, 0, 2])
OPTIONS = {
    "grad_cam": {},
    "layer_cam": {},  # HiResCAM is 0 where a LayerNorm follows
    "ablation_cam": {"masks_at_a_time": 8},  # several versions of a batch at once
    "shapley_cam": {},
    "score_cam": {"masks_at_a_time": 8},
    "integrated_grad_cam": {"steps": 2},
}


def at(layer, *methods):
    """The chosen methods, or all of these, at a layer, for `explain_all`."""
    return {name: {"method": name, "layer": layer} | OPTIONS.get(name, {}) for name in methods or OPTIONS}


def check_all(actual, expected, assert_close):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert np.any(expected[name]), name
        assert_close(actual[name], expected[name], 1e-5)


@partial(jax.jit, static_argnames=("layers", "methods"))
def maps_of(models, images, layers, methods=tuple(OPTIONS)):
    """Maps of each model at its layer, from one program; `explain` would trace a model once more for each method."""
    return [
        {name: METHODS[name](model, images, LABELS[: len(images)], layer=layer, **OPTIONS[name]) for name in methods}
        for model, layer in zip(models, layers, strict=True)
    ]


@pytest.mark.parametrize("name", [slow("resnet50"), slow("convnext_tiny"), slow("caformer_s18"), slow("fastvit_sa24")])
def test_our_models_are_cut_as_they_cut_themselves(name, assert_close):
    model, images = random_model(lambda: small(name)), normal(2, 32, 32, 3)
    # One method of each kind, as the slower models take seconds to trace for each.
    methods = tuple(OPTIONS) if name == "resnet50" else ("layer_cam", "ablation_cam", "score_cam")
    check_all(*maps_of((from_module(model), model), images, ("stages.0.blocks.0",) * 2, methods), assert_close)


@pytree
@dataclass(frozen=True)
class ByHand:
    """A ConvNeXt cut at a depthwise convolution: its block adds what came in, of the picture as it is."""

    model: Any

    def split(self, images, layer, inputs):
        stage = self.model.stages[1]
        block, came_in = stage.blocks[0], stage.downsample(self.model.features(images, "stages.0"))

        def head(a):
            y = block.gamma * block.pwconv2(gelu(block.pwconv1(block.norm(a))))
            return self.model.classify(jnp.tile(came_in, (len(a) // len(images), 1, 1, 1)) + y)

        return block.dwconv(came_in, positions=stage.positions), head

    def output(self, images, inputs):
        return self.model(images)


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("grad_cam", "score_cam"), tuple(OPTIONS)])
def test_inside_a_residual_block_the_other_branch_stays_as_it_is(methods, assert_close):
    model, images = random_model(lambda: small("convnext_tiny")), normal(2, 32, 32, 3)
    layers = ("stages.1.blocks.0.dwconv", "by hand")
    check_all(*maps_of((from_module(model), ByHand(model)), images, layers, methods), assert_close)


class Gated(nnx.Module):
    """A picture and a gate for each channel; with normalisation, dropout and a flag of its own, in training mode."""

    def __init__(self, rngs):
        self.body = nnx.Sequential(nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.relu)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(4, 3, rngs=rngs)
        self.deterministic = False

    def features(self, images, gate):
        return self.body(images)

    def head(self, a, gate):
        return self.fc(self.dropout((a**2).mean((1, 2)) * gate["gate"]))

    def __call__(self, images, gate, *, scale):
        logits = self.head(self.features(images, gate), gate)
        return logits * scale if self.deterministic else jnp.zeros_like(logits)


@pytest.fixture(scope="module")
def gated():
    return random_model(lambda: Gated(nnx.Rngs(0)))


@pytest.fixture(scope="module")
def gated_images():
    return normal(3, 6, 7, 2), {"gate": normal(3, 4, seed=5)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dcls_jax.cam.DeadMapWarning")  # one of one image
def test_several_inputs_in_evaluation_mode_by_chunks(gated, gated_images, assert_close):
    expected = explain_all(gated, gated_images, LABELS, at(None))
    check_all(
        explain_all(from_module(gated, scale=1), gated_images, LABELS, at("body"), chunk=2), expected, assert_close
    )


def test_the_callers_module_stays_as_it_was(gated, gated_images):
    parts, state = modules_by_path(gated), nnx.state(gated)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.filter_state(state, nnx.Not(nnx.RngKey))))
    explain(from_module(gated, scale=1), gated_images, layer="body.layers.0")
    after = nnx.to_pure_dict(nnx.filter_state(nnx.state(gated), nnx.Not(nnx.RngKey)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert {path: id(part) for path, part in modules_by_path(gated).items()} == {k: id(v) for k, v in parts.items()}
    assert type(gated.body.layers[0]) is nnx.Conv
    assert not gated.dropout.deterministic
    assert not gated.body.layers[1].use_running_average
    assert not gated.deterministic


def test_under_jit_the_module_is_an_argument(gated, gated_images, assert_close):
    run = jax.jit(lambda model, images: explain(model, images, LABELS, layer="body"))
    other = random_model(lambda: Gated(nnx.Rngs(0)), seed=1)
    for module in (gated, other):
        expected = explain(module, gated_images, LABELS)
        assert_close(run(from_module(module, scale=1), gated_images), expected, 1e-5)
    assert run._cache_size() == 1


class Wrapped(nnx.Module):
    """Two residual blocks, called in one way or another."""

    def __init__(self, rngs, call=lambda block, x: block(x)):
        self.stem = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.data({"all": [Residual(rngs), Residual(rngs)]})
        self.fc = nnx.Linear(4, 3, rngs=rngs)
        self.call = call

    def __call__(self, images):
        x = self.stem(images)
        for block in self.blocks["all"]:
            x = self.call(block, x)
        return self.fc((x**2).mean((1, 2)))


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.conv(x))

    def convolved(self, x):
        return self.conv(x)


IMAGES = normal(3, 8, 8, 3)
CALLS = {
    "nnx.remat": nnx.remat(lambda block, x: block(x)),
    "jax.checkpoint": lambda block, x: jax.checkpoint(block.__call__)(x),
    "nnx.jit": nnx.jit(lambda block, x: block(x)),
    "jax.jit": lambda block, x: jax.jit(block.__call__)(x),
    "both": nnx.jit(nnx.remat(lambda block, x: block(x))),
}


@pytest.fixture(scope="module")
def plain_maps():
    return explain_all(from_module(random_model(lambda: Wrapped(nnx.Rngs(0)))), IMAGES, LABELS, wrapped_cuts())


def wrapped_cuts():
    inside = at("blocks.all.0.conv", "hires_cam", "ablation_cam", "integrated_grad_cam")
    return inside | {"block": {"method": "hires_cam", "layer": "blocks.all.1"}}


@pytest.mark.parametrize("name", [slow("nnx.remat"), "jax.checkpoint", slow("nnx.jit"), slow("jax.jit"), "both"])
def test_a_transformation_inside_changes_nothing(name, plain_maps, assert_close):
    module = random_model(lambda: Wrapped(nnx.Rngs(0), CALLS[name]))
    check_all(explain_all(from_module(module), IMAGES, LABELS, wrapped_cuts()), plain_maps, assert_close)


@pytest.mark.slow
def test_augmented_maps_are_averages_over_whole_pictures(assert_close):
    model = from_module(random_model(lambda: Wrapped(nnx.Rngs(0))))
    chosen = at("blocks.all.1.conv", "integrated_grad_cam", "score_cam")
    views = [(scale, step) for scale in (0.9, 1.0, 1.1) for step in (1, -1)]
    maps = [explain_all(model, scale * IMAGES[:, :, ::step], LABELS, chosen) for scale, step in views]
    expected = jax.tree.map(lambda *each: sum(m[:, :, ::s] for m, (_, s) in zip(each, views, strict=True)) / 6, *maps)
    augmented = {name: options | {"augment": True} for name, options in chosen.items()}
    check_all(explain_all(model, IMAGES, LABELS, augmented), expected, assert_close)


@pytest.mark.slow
def test_methods_of_pixels_need_no_layer(assert_close):
    module = random_model(lambda: Wrapped(nnx.Rngs(0)))
    pair = from_functions(lambda module, x: x, lambda module, x: module(x), module)
    chosen = {"input_x_gradient": {"method": "input_x_gradient"}, "occlusion": {"method": "occlusion", "window": 4}}
    check_all(
        explain_all(from_module(module), IMAGES, LABELS, chosen),
        explain_all(pair, IMAGES, LABELS, chosen),
        assert_close,
    )
    with pytest.raises(ValueError, match=r"image 1 by input_x_gradient .* not finite, as the images themselves"):
        explain(from_module(module), IMAGES.at[1].set(jnp.nan), LABELS, method="input_x_gradient")


class ViT(nnx.Module):
    """Of pictures 12 x 16: a class token, two registers, and 3 x 4 tokens; the class token is classified."""

    def __init__(self, rngs):
        self.embed = nnx.Conv(3, 8, (4, 4), strides=4, rngs=rngs)
        self.prefix = nnx.Param(jnp.zeros((1, 3, 8)))
        self.position = nnx.Param(jnp.zeros((1, 15, 8)))
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.fc = nnx.Linear(8, 3, rngs=rngs)

    def tokens(self, images):
        prefix = jnp.broadcast_to(self.prefix[...], (len(images), 3, 8))
        return jnp.concatenate([prefix, self.embed(images).reshape(len(images), 12, 8)], 1) + self.position[...]

    def classify(self, tokens):
        return self.fc(self.norm(tokens[:, 0]))

    def __call__(self, images):
        tokens = self.tokens(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.classify(tokens)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, rngs=rngs)
        self.mlp = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, tokens):
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + nnx.gelu(self.mlp(self.norm2(tokens)))


def vit_features(vit, images):
    """The tokens of the picture as a grid, with those before in more channels."""
    prefix, tokens = jnp.split(vit.blocks[0](vit.tokens(images)), [3], 1)
    tokens = tokens.reshape(-1, 3, 4, 8)
    return jnp.concatenate([tokens, jnp.broadcast_to(prefix.reshape(-1, 1, 1, 24), (*tokens.shape[:3], 24))], -1)


def vit_head(vit, a):
    tokens, prefix = a[..., :8].reshape(-1, 12, 8), jax.lax.stop_gradient(a[:, 0, 0, 8:].reshape(-1, 3, 8))
    return vit.classify(vit.blocks[1](jnp.concatenate([prefix, tokens], 1)))


@pytest.fixture(scope="module")
def vit():
    return random_model(lambda: ViT(nnx.Rngs(0)))


@pytest.mark.slow
def test_a_transformer_keeps_its_class_token_and_registers(vit, assert_close):
    images, methods = normal(3, 12, 16, 3), ("grad_cam", "layer_cam", "shapley_cam", "score_cam")
    models = from_module(vit, prefix_tokens=3, grid=(3, 4)), from_functions(vit_features, vit_head, vit)
    maps, expected = maps_of(models, images, ("blocks.0", None), methods)
    assert maps["grad_cam"].shape == (3, 3, 4)
    check_all(maps, expected, assert_close)


@pytest.mark.slow
def test_after_the_last_block_the_class_token_alone_is_read(vit):
    model, images = from_module(vit, prefix_tokens=3, grid=[3, 4]), normal(3, 12, 16, 3)
    with pytest.warns(DeadMapWarning, match="class token"):
        assert not explain(model, images, LABELS, layer="blocks.1").any()
    assert explain(model, images, LABELS, layer="blocks.1.norm1").any((1, 2)).all()


def test_tokens_lie_row_by_row():
    tokens = normal(2, 8, 5)
    grid = tokens_to_grid(tokens, prefix_tokens=2, grid=(2, 3))
    np.testing.assert_array_equal(grid[:, 1, 2], tokens[:, 7])
    np.testing.assert_array_equal(grid[:, 0, 1], tokens[:, 3])
    assert tokens_to_grid(tokens, prefix_tokens=4).shape == (2, 2, 2, 5)
    assert tokens_to_grid(tokens, grid=(2, 2, 2)).shape == (2, 2, 2, 2, 5)
    for options in ({}, {"prefix_tokens": 8}, {"prefix_tokens": 9}, {"grid": (3, 3)}):
        with pytest.raises(ValueError, match=r"tokens have shape \(2, 8, 5\), expected \d and a grid"):
            tokens_to_grid(tokens, **options)


class Unit(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        y = linen.Conv(4, (3, 3))(x)
        return x + linen.relu(linen.BatchNorm(use_running_average=not train)(y))


class Net(linen.Module):
    """Submodules with names and without, one under `linen.remat`."""

    @linen.compact
    def __call__(self, images, train=True):
        x = linen.Conv(4, (3, 3), strides=2, name="stem")(images)
        x = Unit()(x, train)
        x = linen.remat(Unit, static_argnums=2)(name="last")(x, train)
        return linen.Dense(3)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(lambda: Net().init(jax.random.key(0), IMAGES))
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [normal(*leaf.shape, seed=i) ** 2 / 4 for i, leaf in enumerate(leaves)])


def of(variables, name):
    return {collection: parts[name] for collection, parts in variables.items() if name in parts}


def linen_features(variables, images):
    x = linen.Conv(4, (3, 3), strides=2).apply(of(variables, "stem"), images)
    return Unit().apply(of(variables, "Unit_0"), x, False)


def linen_head(variables, a):
    x = Unit().apply(of(variables, "last"), a, False)
    return linen.Dense(3).apply(of(variables, "Dense_0"), x.mean((1, 2)))


def test_a_linen_module_is_cut_where_its_parts_meet(variables, assert_close):
    models = from_module(Net(), variables, train=False), from_functions(linen_features, linen_head, variables)
    check_all(*maps_of(models, IMAGES, ("Unit_0", None)), assert_close)


def test_a_linen_module_inside_a_residual_block(variables, assert_close):
    last, x = of(variables, "last"), linen_features(variables, IMAGES)
    y = linen.Conv(4, (3, 3)).apply(of(last, "Conv_0"), x)
    y = linen.BatchNorm(use_running_average=True).apply(of(last, "BatchNorm_0"), y)
    weights = variables["params"]["Dense_0"]["kernel"][:, LABELS] / 16
    expected = jnp.einsum("bhwc,cb->bhw", jax.nn.relu(y), weights)
    model = from_module(Net(), variables, train=False)
    assert_close(explain(model, IMAGES, LABELS, method="hires_cam", layer="last.BatchNorm_0"), expected, 1e-5)


class Shared(nnx.Module):
    """A layer that is called twice, one that gives two arrays, one in a loop, and one by another method."""

    def __init__(self, rngs):
        self.twice = Residual(rngs)
        self.pair = Pair()
        self.chosen = Residual(rngs)
        self.other = Residual(rngs)

    def __call__(self, images):
        x = self.twice(self.twice(images))
        x, _ = self.pair(x)
        x = nnx.cond(x[0, 0, 0, 0] > 0, lambda block, x: block(x), lambda block, x: x, self.chosen, x)
        return self.other.convolved(x).mean((1, 2))


class Pair(nnx.Module):
    def __call__(self, x):
        return x, x


REFUSED = {
    "twise": "no submodule 'twise'; the nearest are twice, ",
    None: "layer is needed: the path of a submodule",
    "twice": "layer .='twice'. is called 2 times by __call__, expected one such call",
    "pair": "layer .='pair'. gives a tuple, expected an array",
    "chosen": "layer .='chosen'. is called inside cond, which cannot be cut",
    "other": "layer .='other'. is called 0 times by __call__, expected one such call",
}


@pytest.mark.parametrize("layer", REFUSED)
def test_a_layer_that_cannot_be_cut_is_refused_in_one_line(layer):
    module = random_model(lambda: Shared(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=REFUSED[layer]) as error:
        explain(from_module(module), normal(3, 4, 4, 4), LABELS, layer=layer)
    assert "\n" not in str(error.value)


def test_what_is_no_module_is_refused_in_one_line(variables, vit):
    with pytest.raises(ValueError, match=r"module .a function. must be a Flax module, NNX or Linen"):
        from_module(vit_head)
    with pytest.raises(ValueError, match="variables are needed, as a Linen module holds none"):
        from_module(Net())
    with pytest.raises(ValueError, match=r"mask .a ArrayImpl. must be hashable; explain..images, more., ...."):
        from_module(vit, mask=jnp.zeros(3))
    with pytest.raises(ValueError, match="no submodule 'Unit_1'; the nearest are Unit_0, "):
        explain(from_module(Net(), variables, train=False), IMAGES, LABELS, layer="Unit_1")
    images = normal(3, 12, 16, 3)
    with pytest.raises(ValueError, match=re.escape("(3, 15, 8), expected 3 and a grid (3, 3) along axis 1")):
        explain(from_module(vit, prefix_tokens=3), images, LABELS, layer="blocks.0")

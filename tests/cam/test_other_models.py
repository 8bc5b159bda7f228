"""Models that are not ours: two functions with parameters, a transformer in NNX, a module in Linen."""

import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam import DeadMapWarning, explain, from_functions, from_module, grad_cam, resize
from dcls_jax.cam.model import split
from tests.conftest import normal, random_model

example = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "examples" / "explain_other_models.py")))


def features(params, images, upto="end"):
    return images @ params["mix"] if upto == "end" else images


def head(params, activations, start="end"):
    a = activations if start == "end" else activations @ params["mix"]
    return a.mean((1, 2)) @ params["weights"]


def functional(seed):
    return from_functions(features, head, {"mix": normal(3, 4, seed=seed), "weights": normal(4, 2, seed=seed)})


def test_two_functions_are_a_model(assert_close):
    images, model = normal(2, 5, 6, 3, seed=9), functional(0)
    weights = model.params["weights"].T[np.array([1, 0])]
    expected = jnp.einsum("bhwc,bc->bhw", images @ model.params["mix"], weights) / 30
    assert_close(explain(model, images, [1, 0]), expected, 1e-5)
    # all is linear, so the map is the same before the mixture
    assert_close(explain(model, images, [1, 0], layer="start"), expected, 1e-5)


def test_parameters_are_leaves_and_compile_once():
    traces = []

    def counted(model, images, targets, *, layer=None):
        traces.append(layer)
        return grad_cam(model, images, targets, layer=layer)

    images = normal(2, 5, 6, 3, seed=9)
    maps = [explain(functional(seed), images, [1, 0], method=counted) for seed in (1, 2)]
    assert len(traces) == 1
    assert not np.allclose(maps[0], maps[1])
    assert len(jax.tree.leaves(functional(0))) == 2


@pytest.fixture(scope="module")
def vit():
    return random_model(lambda: example.ViT(rngs=nnx.Rngs(0)))


@pytest.mark.slow
def test_every_cut_of_the_transformer_leads_to_the_same_logits(vit, assert_close):
    images = normal(2, 32, 32, 3)
    expected = jax.jit(lambda model, x: model(x))(vit, images)

    @partial(jax.jit, static_argnames="layer")
    def through(model, images, layer):
        a, head = split(from_module(model, prefix_tokens=1), images, layer)
        return head(a)

    for layer in ("blocks.0", "blocks.1.attention", "blocks.2"):
        assert_close(through(vit, images, layer), expected, 1e-5)


@pytest.mark.slow
def test_a_class_token_leaves_the_last_blocks_patches_without_a_path(vit):
    model, images = from_module(vit, prefix_tokens=1), normal(2, 32, 32, 3)
    assert explain(model, images, layer="blocks.1").any()
    with pytest.warns(DeadMapWarning, match="class token"):
        maps = explain(model, images, layer="blocks.2")
    assert maps.shape == (2, 8, 8)
    assert not maps.any()


@pytest.mark.long
def test_the_example_runs_and_its_maps_find_the_square(tmp_path, capsys):
    maps = example.main(str(tmp_path / "maps.png"), methods=["grad_cam"], steps=60)
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "ViT   grad_cam       maps (4, 8, 8)" in printed
    assert "Linen grad_cam       maps (4, 8, 8)" in printed
    _, _, squares = example.draw(4, seed=10_000)
    for name in ("ViT\ngrad_cam", "Linen\ngrad_cam"):
        enlarged = np.asarray(resize(maps[name], 32))
        assert all(m[s].mean() > m[~s].mean() for m, s in zip(enlarged, squares, strict=True))

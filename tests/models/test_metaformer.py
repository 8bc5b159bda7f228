"""What only the MetaFormers have: token mixers, residual scales, two epsilons, timm's own `head.norm`, training."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from dcls_jax import DclsConfig
from dcls_jax.models import load_weights
from dcls_jax.models.metaformer import VARIANTS, Attention, MetaFormer, MetaFormerConfig, MlpHead, StarReLU
from tests import golden

SMALL = MetaFormerConfig(
    (1, 1, 1), (32, 32, 32), ("convolution", "convolution", "attention"), 10, DclsConfig(3, 5, "v1"), drop_path_rate=0.5
)


@pytest.fixture(scope="module")
def model():
    return MetaFormer(SMALL, rngs=nnx.Rngs(0))


def test_layer_names():
    names = nnx.eval_shape(lambda: MetaFormer(VARIANTS["caformer_s18"].config, rngs=nnx.Rngs(0))).layer_names()
    assert names[:3] == ["stem", "stages.0.blocks.0", "stages.0.blocks.1"]
    assert [name for name in names if "downsample" in name] == [f"stages.{i}.downsample" for i in (1, 2, 3)]
    assert len(names) == 1 + 3 + 18 + 5


@pytest.mark.parametrize("mixers", [("attention",), ("attention", "pooling")])
def test_unknown_or_too_few_token_mixers_are_refused(mixers):
    with pytest.raises(ValueError, match=r"token_mixers .* must name convolution or attention for each of the 2"):
        MetaFormerConfig((1, 1), (8, 16), mixers)


@pytest.mark.slow
def test_initialisation_is_the_originals(model):
    mlp = model.stages[2].blocks[0].mlp
    assert np.isclose(mlp.fc1.kernel[...].std(), 0.02, rtol=0.05)
    assert abs(mlp.fc1.kernel[...]).max() > 0.06  # not cut at two deviations
    assert (mlp.act.scale[...].tolist(), mlp.act.bias[...].tolist()) == ([1], [0])
    assert not model.stem.conv.bias[...].any()


def test_parameters_are_only_where_the_original_has_them(model):
    """Residual scales from the third stage on, positions where there are convolutions, biases in the head alone."""
    keys = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert {key[:8] for key in keys if "res_scale" in key} == {"stages.2"}
    assert {key for key in keys if "positions" in key} == {"stages.0.positions.P", "stages.1.positions.P"}
    biased = {key for key in keys if key.endswith(".bias") and ".act" not in key and ".conv." not in key}
    assert biased == {"norm.bias", "fc.fc1.bias", "fc.norm.bias", "fc.fc2.bias"}


def test_star_relu():
    activation = StarReLU()
    activation.scale[...], activation.bias[...] = jnp.array([2.0]), jnp.array([-1.0])
    assert activation(jnp.array([-3.0, 0.0, 3.0])).tolist() == [-1, -1, 17]


def test_attention_by_hand():
    """Queries, keys, values in this order, heads within each, scores scaled by 32 ** -0.5."""
    rng = np.random.default_rng(0)
    attention = Attention(64, rngs=nnx.Rngs(0))
    attention.qkv.kernel[...] = jnp.asarray(rng.normal(size=(64, 192)).astype(np.float32) / 3)
    attention.proj.kernel[...] = jnp.eye(64)
    x = rng.normal(size=(1, 2, 3, 64)).astype(np.float32)
    qkv = x.reshape(6, 64).astype(np.float64) @ np.asarray(attention.qkv.kernel[...], np.float64)
    expected = np.zeros((6, 64))
    for head in (slice(0, 32), slice(32, 64)):
        q, k, v = (part[:, head] for part in np.split(qkv, 3, axis=1))
        scores = np.exp(q @ k.T / 32**0.5)
        expected[:, head] = scores / scores.sum(1, keepdims=True) @ v
    np.testing.assert_allclose(attention(jnp.asarray(x)).reshape(6, 64), expected, atol=1e-4)


def test_norm_epsilons():
    """1e-6 but for the head's hidden layer; logits hardly tell."""
    model = nnx.eval_shape(lambda: MetaFormer(VARIANTS["convformer_s18"].config, rngs=nnx.Rngs(0)))
    norms = {path: m for path, m in nnx.iter_modules(model) if isinstance(m, nnx.LayerNorm)}
    assert {path for path, norm in norms.items() if norm.epsilon != 1e-6} == {("fc", "norm")}
    assert MlpHead(8, 3, rngs=nnx.Rngs(0)).norm.epsilon == 1e-5


def in_timms_names(key: str) -> str:
    for pattern, replacement in (
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
        (r"^downsample_layers\.0\.(?:post_)?", "stem."),
        (r"^downsample_layers\.(\d)\.(?:pre_)?", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d)\.", r"stages.\1.blocks.\2."),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def test_timms_names_lead_to_the_same_places():
    model, _ = golden.load("caformer_dcls_v1")
    original = load_file(golden.FOLDER / "caformer_dcls_v1.weights.safetensors")
    timms = {in_timms_names(key): value for key, value in original.items()}
    assert timms.keys() >= {"head.norm.weight", "head.fc.norm.weight", "stages.1.downsample.norm.weight"}
    timms = {  # convolutional stages have 1x1 convolutions for linear layers
        key: value[..., None, None] if re.match(r"stages\.[01]\..*(pwconv|fc)\d\.weight", key) else value
        for key, value in timms.items()
    }
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(load_weights(model, timms)), nnx.state(model)))


@pytest.mark.slow
@pytest.mark.parametrize("tree_mode", [False, True])
def test_branches_are_dropped_in_training_only(model, tree_mode):
    with nnx.set_graph_mode(not tree_mode), nnx.set_graph_updates(not tree_mode):
        model = nnx.clone(model)
        x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
        x = jnp.asarray(x.repeat(6, axis=0))  # six times one picture: only dropped branches tell them apart
        forward = jax.jit(lambda m, x: m.features(x))
        features = forward(model, x)
        np.testing.assert_allclose(features[1:], features[:-1], atol=1e-6)
        model.train()
        assert abs(forward(model, x)[1:] - forward(model, x)[:1]).max() > 1e-4
        model.eval()
        np.testing.assert_array_equal(forward(model, x), features)

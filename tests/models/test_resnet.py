"""What only ResNet has: timm's initialisation, batch statistics as torch moves them, training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax import DclsConfig
from dcls_jax.models.norms import BatchNorm
from dcls_jax.models.resnet import VARIANTS, ResNet, ResNetConfig
from tests.conftest import slow

SMALL = ResNetConfig((2,), (64,), num_classes=10, dcls=DclsConfig(5, 7, "v0"), drop_path_rate=0.5)


@pytest.fixture(scope="module")
def model():
    return ResNet(SMALL, rngs=nnx.Rngs(0))


def test_layer_names():
    names = nnx.eval_shape(lambda: ResNet(VARIANTS["resnet50"].config, rngs=nnx.Rngs(0))).layer_names()
    assert names[:4] == ["stem", "stages.0.blocks.0", "stages.0.blocks.1", "stages.0.blocks.2"]
    assert names[-5:] == ["stages.0", "stages.1", "stages.2", "stages.3", "features"]
    assert len(names) == 1 + 16 + 5


@pytest.mark.slow
def test_initialisation_is_timms(model):
    block = model.stages[0].blocks[0]
    assert not block.bn3.scale[...].any()
    assert block.bn1.scale[...].min() == 1
    assert np.isclose(block.conv1.kernel[...].std(), (2 / 64) ** 0.5, rtol=0.05)  # He's, over 64 outputs
    assert np.isclose(block.conv2.weight[...].std(), 0.02, rtol=0.05)
    for leaf in (model.fc.kernel[...], model.fc.bias[...]):
        assert 0.7 / 16 < abs(leaf).max() <= 1 / 16  # 256 inputs


def test_only_a_block_that_changes_size_or_width_converts_its_shortcut():
    config = ResNetConfig((2, 1), (16, 8))  # 64 channels leave the stem, and 4 * 16 the first stage
    first, second = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0))).stages
    assert first.blocks[0].downsample is None
    assert first.blocks[1].downsample is None
    assert second.blocks[0].downsample.conv.stride == (2, 2)


def test_stem_pools_as_torch():
    """Windows centred on every other pixel; the border counts for nothing, though every pixel here is negative."""
    x = -jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
    pooled = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    assert pooled[0, :, :, 0].tolist() == [[-1, -2], [-5, -6]]


def test_batch_norm_trains_as_torch():
    norm = BatchNorm(1, rngs=nnx.Rngs(0))
    norm.train()
    y = norm(jnp.array([[0.0], [2.0], [4.0], [6.0]]))
    # Mean 3, variance 5; unbiased, as it enters the running variance, 20/3. A tenth of each replaces the old.
    np.testing.assert_allclose(y[:, 0], np.array([-3, -1, 1, 3]) / np.sqrt(5 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], 0.3, rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 2 / 3, rtol=1e-6)
    norm.eval()
    np.testing.assert_allclose(norm(jnp.ones((1, 1))), [[0.7 / np.sqrt(0.9 + 2 / 3 + 1e-5)]], rtol=1e-6)


def test_batch_norm_variance_survives_a_large_mean():
    x = np.random.default_rng(0).normal(1000, 1, (16, 8, 8, 3)).astype(np.float32)
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    norm.train()
    norm(jnp.asarray(x))
    expected = 0.9 + 0.1 * x.astype(np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(norm.var[...], expected, rtol=1e-5)


def test_batch_norm_computes_in_float32():
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    norm.train()
    assert norm(jnp.arange(8, dtype=jnp.bfloat16).reshape(4, 2)).dtype == jnp.bfloat16
    assert norm.var[...].dtype == jnp.float32


def test_batch_norm_refuses_to_train_on_one_value():
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    norm.train()
    with pytest.raises(ValueError, match=r"one value per channel: x has shape \(1, 1, 1, 2\)"):
        norm(jnp.ones((1, 1, 1, 2)))


@jax.jit
def training_step(model, x):
    """Logits, batch statistics and gradients of all parameters."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(x)
        return jnp.square(logits).mean(), (logits, nnx.state(model, nnx.BatchStat))

    gradients, (logits, statistics) = jax.grad(loss, has_aux=True)(params)
    return logits, statistics, gradients


@pytest.mark.parametrize("tree_mode", [slow(False), True])
def test_training_step(model, tree_mode):
    with nnx.set_graph_mode(not tree_mode), nnx.set_graph_updates(not tree_mode):
        model = nnx.clone(model)
        for block in model.stages[0].blocks:
            block.bn3.scale[...] = jnp.asarray(np.ones(256, np.float32))  # as initialised, 0, it hides its branch
        statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        x = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
        x = jnp.asarray(x.repeat(6, axis=0))  # six times one picture: only dropped branches tell them apart
        logits = jax.jit(lambda m, x: m(x))(model, x)
        np.testing.assert_allclose(logits[1:], logits[:-1], atol=1e-5)

        model.train()
        trained, moved, gradients = training_step(model, x)
        assert abs(trained[1:] - trained[:1]).max() > 1e-3
        assert not any(np.array_equal(a, b) for a, b in zip(statistics, jax.tree.leaves(moved), strict=True))
        assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))

        model.eval()
        np.testing.assert_array_equal(jax.jit(lambda m, x: m(x))(model, x), logits)

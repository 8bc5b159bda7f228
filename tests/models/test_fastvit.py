"""FastViT against Apple's code: golden cases, key listings, parameter counts, the fused form, training."""

import ast
import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from dcls_jax import DclsConfig
from dcls_jax.models import load_weights
from dcls_jax.models.backbone import stochastic_depth
from dcls_jax.models.create import shapes_only
from dcls_jax.models.fastvit import VARIANTS, ConvFFN, FastViT, FastViTConfig, MultiBranch
from dcls_jax.models.norms import BatchNorm
from tests.conftest import DATA, slow
from tests.golden import load

golden = cache(load)


def test_cuts():
    """That all lead to the same logits is tested of every golden case."""
    model, expected = golden("fastvit_dcls_v1")
    names = model.layer_names()
    assert names == [
        *("stem", "stages.0.blocks.0", "stages.0.blocks.1"),
        *("stages.1.downsample", "stages.1.blocks.0"),
        *("stages.2.downsample", "stages.2.blocks.0", "stages.2.blocks.1"),
        *("stages.3.downsample", "stages.3.pos_emb", "stages.3.blocks.0", "conv_exp"),
        *("stages.0", "stages.1", "stages.2", "stages.3", "features"),
    ]
    last = jax.eval_shape(lambda model, x: model.features(x, upto="stages.3"), model, expected["image"])
    assert last.shape == (2, 2, 2, 64)


def listing(name: str) -> dict[str, np.ndarray]:
    lines = (DATA / "keys" / f"{name}.txt").read_text().splitlines()
    entries = (re.fullmatch(r"(\S+) (\(.*\)) \w+", line).groups() for line in lines)
    return {key: np.ones(ast.literal_eval(shape), np.float32) for key, shape in entries}


@pytest.mark.parametrize(
    ("name", "setting", "count", "statistics", "listings"),
    [
        slow("fastvit_sa24", {}, 21_554_216, 58_624, ("base", "timm_base")),
        slow("fastvit_sa24", {"dcls": VARIANTS["fastvit_sa24"].dcls}, 21_523_496, 58_624, ("dcls",)),
        ("fastvit_sa24", {"fused": True}, 21_501_288, 15_872, ("fused_base",)),
        slow("fastvit_sa36", {"fused": True}, 31_457_256, 23_808, ("fused_base",)),
    ],
)
def test_parameter_counts_and_key_listings(name, setting, count, statistics, listings):
    model = nnx.eval_shape(lambda: FastViT(replace(VARIANTS[name].config, **setting), rngs=shapes_only()))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))) == statistics
    for kind in listings:
        load_weights(model, listing(f"{name}_{kind}"))


def test_timm_names_lead_to_the_same_places():
    """Batch norms of parallel branches have equal shapes: only their values tell them apart."""
    renames = (
        (r"^patch_embed", "stem"),
        (r"^network\.6\.pe", "stages.3.pos_emb.pos_enc"),
        *((rf"^network\.{2 * i - 1}", f"stages.{i}.downsample") for i in (1, 2, 3)),
        *((rf"^network\.{n}", f"stages.{i}.blocks") for i, n in enumerate((0, 2, 4, 7))),
        ("rbr_conv", "conv_kxk"),
        ("rbr_scale", "conv_scale"),
        ("rbr_skip", "identity"),
        ("lkb_origin", "large_conv"),
        ("convffn", "mlp"),
        (r"(layer_scale(_\d)?)$", r"\1.gamma"),
        (r"se\.reduce", "se.fc1"),
        (r"se\.expand", "se.fc2"),
        ("conv_exp", "final_conv"),
        (r"^head", "head.fc"),
    )
    model, _ = golden("fastvit_dcls_v1")
    state = {}
    for key, array in load_file(DATA / "golden/fastvit_dcls_v1.weights.safetensors").items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        state[key] = array
    loaded = load_weights(model, state)
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(loaded), nnx.state(model)))


@pytest.mark.long
def test_training_moves_statistics_and_drops_paths(assert_close):
    model, expected = golden("fastvit_base")
    model, images = nnx.clone(model), expected["image"]
    for stage in model.stages:
        for block in stage.blocks:
            block.drop_path = stochastic_depth(0.5, nnx.Rngs(0))
    assert_close(model(images), expected["logits"], 1e-5)
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)]
    before = [(norm.mean[...], norm.var[...]) for norm in norms]
    model.train()
    assert np.abs(model(images) - model(images)).max() > 1e-3
    for norm, (mean, var) in zip(norms, before, strict=True):
        assert (norm.mean[...] != mean).any()
        assert (norm.var[...] != var).any()
    model.eval()
    assert_close(model(images), model(images), 0)


def test_paths_are_dropped_more_the_deeper_they_are():
    config = FastViTConfig((2, 1, 2, 1), (4, 4, 8, 32), drop_path_rate=0.5)
    model = nnx.eval_shape(lambda: FastViT(config, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert np.allclose(rates, [0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_initialisation_is_apple_s():
    ffn = ConvFFN(64, 4, DclsConfig(34, 17, "v1"), rngs=nnx.Rngs(0))
    for weight in (ffn.fc1.kernel, ffn.fc2.kernel, ffn.conv.conv.weight):
        assert np.isclose(weight[...].std(), 0.02, rtol=0.1)
    assert not ffn.fc1.bias[...].any()
    stem = MultiBranch(3, 64, (3,), stride=2, rngs=nnx.Rngs(0)).branches[0].conv.kernel[...]
    assert np.isclose(stem.std(), (1 / 3 / 27) ** 0.5, rtol=0.1)  # uniform within 1 / sqrt(fan_in)
    assert [variant.config.layer_scale_init_value for variant in VARIANTS.values()] == [1e-5, 1e-6]


def test_attention_heads_have_32_channels():
    with pytest.raises(ValueError, match=r"dims\[-1\] \(=48\) must be a multiple of 32"):
        nnx.eval_shape(lambda: FastViT(FastViTConfig((1, 1, 1, 1), (4, 4, 8, 48)), rngs=nnx.Rngs(0)))

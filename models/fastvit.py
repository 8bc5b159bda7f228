"""FastViT (arXiv 2303.14189, apple/ml-fastvit), standard or with DCLS, as it trains or fused for inference."""

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.layers import Conv, Dcls2d, DclsConfig, Positions
from dcls_jax.models.activations import gelu
from dcls_jax.models.attention import self_attention
from dcls_jax.models.backbone import Backbone, Layer, drop_path_rates, stochastic_depth
from dcls_jax.models.depthwise import depthwise, shared_positions
from dcls_jax.models.norms import BatchNorm
from dcls_jax.models.preprocess import Transform
from dcls_jax.models.reparameterise import ConvNorm, Filter, Fusible, MobileOne, MultiBranch, identity, reparameterise

# Apple's: 256 / 0.9 and, for SA36, 256 / 0.95. An early version of the DCLS study used Transform(256, 256).
TRANSFORM = Transform(resize=284, crop=256)
TRANSFORM_SA36 = Transform(resize=269, crop=256)
HEAD_DIM = 32

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class FastViTConfig:
    """depths, dims, mlp_ratios: blocks, channels and their expansion in the stages, of which the last one attends.

    dcls replaces the 7x7 depthwise convolutions of equal channels.
    fused: one convolution for each sum of branches, and dense kernels for DCLS, as `reparameterise` makes them.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    num_classes: int = 1000
    dcls: DclsConfig | None = None
    fused: bool = False
    drop_path_rate: float = 0.0
    layer_scale_init_value: float = 1e-5
    transform: Transform = TRANSFORM


# timm's trunc_normal_ cuts at 2, not at two standard deviations.
_normal = jax.nn.initializers.normal(0.02)


def _linear(in_dim: int, out_dim: int, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(in_dim, out_dim, use_bias=bias, kernel_init=_normal, rngs=rngs)


def stem(dim: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """(B, H, W, 3) -> (B, H / 4, W / 4, dim)."""
    return nnx.Sequential(
        MobileOne(3, dim, (3, 1), stride=2, rngs=rngs),
        MobileOne(dim, dim, (3, 1), stride=2, groups=dim, rngs=rngs),
        MobileOne(dim, dim, (1,), rngs=rngs),
    )


def downsample(in_dim: int, out_dim: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """(B, H, W, in_dim) -> (B, H / 2, W / 2, out_dim)."""
    return nnx.Sequential(
        # The original calls a GELU here and discards its result.
        MultiBranch(in_dim, out_dim, (7, 3), stride=2, groups=in_dim, rngs=rngs),
        MobileOne(out_dim, out_dim, (1,), rngs=rngs),
    )


class RepMixer(Fusible):
    """Mixes neighbouring pixels of each channel, without a skip connection at inference."""

    def __init__(self, dim: int, layer_scale: float, *, rngs: nnx.Rngs):
        self.stride = 1
        self.groups = dim
        self.mixer = MultiBranch(dim, dim, (3, 1), groups=dim, rngs=rngs)
        self.norm = BatchNorm(dim, rngs=rngs)
        self.layer_scale = nnx.Param(layer_scale * jnp.ones(dim))

    def __call__(self, x: Array) -> Array:
        return x + self.layer_scale[...] * (self.mixer(x) - self.norm(x))

    def filter(self) -> Filter:
        x = identity(self.groups, self.groups)
        return x + (self.mixer.filter() - x.then(self.norm)) * self.layer_scale[...]


class PositionalEncoding(Fusible):
    """Conditional positional encoding (arXiv 2102.10882): each pixel learns where it is from its neighbours."""

    def __init__(self, dim: int, dcls: DclsConfig | None, *, rngs: nnx.Rngs):
        self.stride = 1
        self.groups = dim
        self.conv: Conv | Dcls2d
        if dcls is None:
            self.conv = Conv(dim, dim, (7, 7), padding=3, groups=dim, rngs=rngs)
        else:
            self.conv = depthwise(dim, dcls, bias=True, kernel_init=_normal, rngs=rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        return x + self.conv(x, positions)

    def filter(self) -> Filter:
        return identity(self.groups, self.groups) + Filter.of(self.conv)


class Attention(nnx.Module):
    """Multi-head self-attention of all pixels."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        if dim % HEAD_DIM:
            raise ValueError(f"dims[-1] (={dim}) must be a multiple of {HEAD_DIM}, the channels of an attention head")
        self.qkv = _linear(dim, 3 * dim, rngs, bias=False)
        self.proj = _linear(dim, dim, rngs)

    def __call__(self, x: Array) -> Array:
        return self.proj(self_attention(self.qkv(x), HEAD_DIM))


class ConvFFN(nnx.Module):
    """Large depthwise convolution, then an inverted bottleneck on each pixel."""

    def __init__(self, dim: int, mlp_ratio: float, dcls: DclsConfig | None, *, rngs: nnx.Rngs):
        self.conv = ConvNorm(depthwise(dim, dcls, bias=False, kernel_init=_normal, rngs=rngs), dim, rngs=rngs)
        self.fc1 = _linear(dim, int(dim * mlp_ratio), rngs)
        self.fc2 = _linear(int(dim * mlp_ratio), dim, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        return self.fc2(gelu(self.fc1(self.conv(x, positions))))


class RepMixerBlock(nnx.Module):
    def __init__(
        self, dim: int, mlp_ratio: float, dcls: DclsConfig | None, drop_path: float, scale: float, *, rngs: nnx.Rngs
    ):
        self.token_mixer = RepMixer(dim, scale, rngs=rngs)
        self.convffn = ConvFFN(dim, mlp_ratio, dcls, rngs=rngs)
        self.layer_scale = nnx.Param(scale * jnp.ones(dim))
        self.drop_path = stochastic_depth(drop_path, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale[...] * self.convffn(x, positions))


class AttentionBlock(nnx.Module):
    def __init__(
        self, dim: int, mlp_ratio: float, dcls: DclsConfig | None, drop_path: float, scale: float, *, rngs: nnx.Rngs
    ):
        self.norm = BatchNorm(dim, rngs=rngs)
        self.token_mixer = Attention(dim, rngs=rngs)
        self.convffn = ConvFFN(dim, mlp_ratio, dcls, rngs=rngs)
        self.layer_scale_1 = nnx.Param(scale * jnp.ones(dim))
        self.layer_scale_2 = nnx.Param(scale * jnp.ones(dim))
        self.drop_path = stochastic_depth(drop_path, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        x = x + self.drop_path(self.layer_scale_1[...] * self.token_mixer(self.norm(x)))
        return x + self.drop_path(self.layer_scale_2[...] * self.convffn(x, positions))


class Stage(nnx.Module):
    """Blocks of equal width; with DCLS, all of them and the encoding place their kernel elements at `positions`."""

    def __init__(
        self,
        in_dim: int | None,
        dim: int,
        mlp_ratio: float,
        dcls: DclsConfig | None,
        drop_paths: list[float],
        layer_scale: float,
        *,
        attention: bool,
        rngs: nnx.Rngs,
    ):
        self.downsample = None if in_dim is None else downsample(in_dim, dim, rngs)
        self.positions = shared_positions(dcls, dim, 1, rngs)
        self.pos_emb = PositionalEncoding(dim, dcls, rngs=rngs) if attention else None
        block: type[RepMixerBlock | AttentionBlock] = AttentionBlock if attention else RepMixerBlock
        self.blocks = nnx.List(block(dim, mlp_ratio, dcls, rate, layer_scale, rngs=rngs) for rate in drop_paths)


class FastViT(Backbone):
    checkpoint_renames = (
        # apple/ml-fastvit
        (r"^patch_embed\.", "stem."),
        (r"^network\.0\.", "stages.0.blocks."),
        (r"^network\.1\.", "stages.1.downsample."),
        (r"^network\.2\.", "stages.1.blocks."),
        (r"^network\.3\.", "stages.2.downsample."),
        (r"^network\.4\.", "stages.2.blocks."),
        (r"^network\.5\.", "stages.3.downsample."),
        (r"^network\.6\.", "stages.3.pos_emb."),
        (r"^network\.7\.", "stages.3.blocks."),
        # timm
        (r"^final_conv\.", "conv_exp."),
        (r"\.se\.fc1\.", ".se.reduce."),
        (r"\.se\.fc2\.", ".se.expand."),
        (r"\.mlp\.", ".convffn."),
        (r"\.gamma$", ""),
        # either
        (r"^head\.(fc\.)?", "fc."),
        (r"^stem\.(\d+)\.", r"stem.layers.\1."),
        (r"\.downsample\.proj\.", ".downsample.layers."),
        (r"\.pos_emb\.(pe|pos_enc)\.", ".pos_emb.conv."),
        (r"\.(rbr_conv|conv_kxk)\.0\.", ".conv.branches.0."),
        (r"\.(rbr_scale|conv_scale)\.", ".conv.branches.1."),
        (r"\.(rbr_skip|identity)\.", ".conv.skip."),
        (r"\.(lkb_origin|large_conv)\.", ".branches.0."),
        (r"\.small_conv\.", ".branches.1."),
        (r"\.mixer\.conv\.", ".mixer."),
        (r"\.norm\.conv\.skip\.", ".norm."),
        # either, fused: the convolution that has taken the place of a whole module, or of a MobileOne's branches
        (r"\.(token_mixer|pos_emb|downsample\.layers\.0)\.(reparam_conv|lkb_reparam)\.", r".\1."),
        (r"\.reparam_conv\.", ".conv."),
    )

    def __init__(self, config: FastViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = config.transform
        depths, dims = config.depths, config.dims

        def built(part: M) -> M:
            return reparameterise(part) if config.fused else part

        self.stem = built(stem(dims[0], rngs))
        self.stages = nnx.List(
            built(
                Stage(
                    dims[i - 1] if i else None,
                    dims[i],
                    config.mlp_ratios[i],
                    config.dcls,
                    rates,
                    config.layer_scale_init_value,
                    attention=i == len(depths) - 1,
                    rngs=rngs,
                )
            )
            for i, rates in enumerate(drop_path_rates(config.drop_path_rate, depths))
        )
        width = 2 * dims[-1]
        self.conv_exp = built(MobileOne(dims[-1], width, (3, 1), groups=dims[-1], squeeze_excite=True, rngs=rngs))
        self.fc = _linear(width, config.num_classes, rngs)

    def layers(self) -> list[Layer]:
        layers: list[Layer] = [("stem", self.stem)]
        for i, stage in enumerate(self.stages):
            if stage.downsample is not None:
                layers.append((f"stages.{i}.downsample", stage.downsample))
            if stage.pos_emb is not None:
                layers.append((f"stages.{i}.pos_emb", partial(stage.pos_emb, positions=stage.positions)))
            for j, block in enumerate(stage.blocks):
                layers.append((f"stages.{i}.blocks.{j}", partial(block, positions=stage.positions)))
        return [*layers, ("conv_exp", self.conv_exp)]

    def classify(self, features: Array) -> Array:
        return self.fc(features.mean((1, 2)))


VARIANTS = {
    "fastvit_sa24": FastViTConfig((4, 4, 12, 4), (64, 128, 256, 512)),
    "fastvit_sa36": FastViTConfig(
        (6, 6, 18, 6), (64, 128, 256, 512), layer_scale_init_value=1e-6, transform=TRANSFORM_SA36
    ),
}
DCLS = {
    "fastvit_sa24": DclsConfig(34, 17, "v1"),
    "fastvit_sa36": DclsConfig(34, 17, "v1"),
}

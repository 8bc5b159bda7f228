"""FastViT (arXiv 2303.14189, apple/ml-fastvit), standard or with DCLS, as it trains or fused for inference."""

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.arrays import along_channels
from dcls_jax.layers import Conv, Dcls2d, DclsConfig, Positions
from dcls_jax.models.activations import gelu
from dcls_jax.models.attention import self_attention
from dcls_jax.models.backbone import (
    Backbone,
    Layer,
    Stage,
    classifier,
    drop_path_rates,
    each_pixel,
    small_normal,
    stochastic_depth,
)
from dcls_jax.models.checkpoints import Rename
from dcls_jax.models.dcls import depthwise, shared_positions
from dcls_jax.models.fusion import Filter, Fusible, identity, reparameterise
from dcls_jax.models.norms import BatchNorm
from dcls_jax.models.published import Accuracy, Published, Variant, zenodo
from dcls_jax.models.transform import Transform

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
    in_channels: int = 3
    layer_scale_init_value: float = 1e-5
    transform: Transform = TRANSFORM


def _linear(in_dim: int, out_dim: int, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(in_dim, out_dim, use_bias=bias, kernel_init=small_normal, rngs=rngs)


class ConvNorm(nnx.Module):
    """A convolution of `dim` output channels, then batch normalisation."""

    def __init__(self, conv: Conv | Dcls2d, dim: int, *, rngs: nnx.Rngs):
        self.conv = conv
        self.bn = BatchNorm(dim, rngs=rngs)

    def __call__(self, x: Array, positions: Positions | None = None) -> Array:
        return self.bn(self.conv(x, positions=positions))

    def filter(self) -> Filter:
        return Filter.of(self.conv).then(self.bn)


class MultiBranch(Fusible):
    """Sum of a batch-normalised convolution of each of `sizes` and, where shapes allow, the batch-normalised input."""

    def __init__(
        self, in_dim: int, out_dim: int, sizes: tuple[int, ...], *, stride: int = 1, groups: int = 1, rngs: nnx.Rngs
    ):
        self.stride = stride
        self.groups = groups

        def branch(size: int) -> ConvNorm:
            conv = Conv(
                in_dim,
                out_dim,
                (size, size),
                stride=stride,
                padding=size // 2,
                groups=groups,
                bias=False,
                rngs=rngs,
            )
            return ConvNorm(conv, out_dim, rngs=rngs)

        self.branches = nnx.List(branch(size) for size in sizes)
        self.skip = BatchNorm(out_dim, rngs=rngs) if in_dim == out_dim and stride == 1 else None

    def __call__(self, x: Array) -> Array:
        """x (B, H, W, in_dim) -> (B, H / stride, W / stride, out_dim)."""
        y = sum((branch(x) for branch in self.branches[1:]), self.branches[0](x))
        return y if self.skip is None else y + self.skip(x)

    def filter(self) -> Filter:
        filters = [branch.filter() for branch in self.branches]
        total = sum(filters[1:], filters[0])
        return total if self.skip is None else total + identity(len(total.bias), self.groups).then(self.skip)


class SqueezeExcite(nnx.Module):
    """A gate for each channel, computed from the means of all (arXiv 1709.01507)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.reduce = Conv(dim, dim // 16, (1, 1), rngs=rngs)
        self.expand = Conv(dim // 16, dim, (1, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        mean = x.mean((1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(mean))))


class MobileOne(nnx.Module):
    """A sum of branches, or the convolution that it fuses to, then GELU."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        sizes: tuple[int, ...],
        *,
        stride: int = 1,
        groups: int = 1,
        squeeze_excite: bool = False,
        rngs: nnx.Rngs,
    ):
        self.conv = MultiBranch(in_dim, out_dim, sizes, stride=stride, groups=groups, rngs=rngs)
        self.se = SqueezeExcite(out_dim, rngs=rngs) if squeeze_excite else None

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        return gelu(x if self.se is None else self.se(x))


def stem(in_channels: int, dim: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """(B, H, W, in_channels) -> (B, H / 4, W / 4, dim)."""
    return nnx.Sequential(
        MobileOne(in_channels, dim, (3, 1), stride=2, rngs=rngs),
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
        self.layer_scale = nnx.Param(jnp.full(dim, layer_scale, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return x + along_channels(self.layer_scale[...], x) * (self.mixer(x) - self.norm(x))

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
            self.conv = depthwise(dim, dcls, bias=True, kernel_init=small_normal, rngs=rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        return x + self.conv(x, positions=positions)

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
        return each_pixel(self.proj, self_attention(each_pixel(self.qkv, x), HEAD_DIM))


class ConvFFN(nnx.Module):
    """Large depthwise convolution, then an inverted bottleneck on each pixel."""

    def __init__(self, dim: int, mlp_ratio: float, dcls: DclsConfig | None, *, rngs: nnx.Rngs):
        self.conv = ConvNorm(depthwise(dim, dcls, bias=False, kernel_init=small_normal, rngs=rngs), dim, rngs=rngs)
        self.fc1 = _linear(dim, int(dim * mlp_ratio), rngs)
        self.fc2 = _linear(int(dim * mlp_ratio), dim, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        return each_pixel(lambda x: self.fc2(gelu(self.fc1(x))), self.conv(x, positions=positions))


class RepMixerBlock(nnx.Module):
    def __init__(
        self, dim: int, mlp_ratio: float, dcls: DclsConfig | None, drop_path: float, scale: float, *, rngs: nnx.Rngs
    ):
        self.token_mixer = RepMixer(dim, scale, rngs=rngs)
        self.convffn = ConvFFN(dim, mlp_ratio, dcls, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full(dim, scale, jnp.float32))
        self.drop_path = stochastic_depth(drop_path, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        x = self.token_mixer(x)
        return x + self.drop_path(along_channels(self.layer_scale[...], x) * self.convffn(x, positions=positions))


class AttentionBlock(nnx.Module):
    def __init__(
        self, dim: int, mlp_ratio: float, dcls: DclsConfig | None, drop_path: float, scale: float, *, rngs: nnx.Rngs
    ):
        self.norm = BatchNorm(dim, rngs=rngs)
        self.token_mixer = Attention(dim, rngs=rngs)
        self.convffn = ConvFFN(dim, mlp_ratio, dcls, rngs=rngs)
        self.layer_scale_1 = nnx.Param(jnp.full(dim, scale, jnp.float32))
        self.layer_scale_2 = nnx.Param(jnp.full(dim, scale, jnp.float32))
        self.drop_path = stochastic_depth(drop_path, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        x = x + self.drop_path(along_channels(self.layer_scale_1[...], x) * self.token_mixer(self.norm(x)))
        return x + self.drop_path(along_channels(self.layer_scale_2[...], x) * self.convffn(x, positions=positions))


class FastViTStage(Stage):
    """In the last stage blocks attend, and pixels learn where they are; with DCLS, that too is by the `positions`."""

    def __init__(self, config: FastViTConfig, i: int, drop_paths: list[float], *, rngs: nnx.Rngs):
        dim, dcls, attends = config.dims[i], config.dcls, i == len(config.depths) - 1
        self.downsample = downsample(config.dims[i - 1], dim, rngs) if i else None
        self.positions = shared_positions(dcls, dim, 1, rngs)
        self.pos_emb = PositionalEncoding(dim, dcls, rngs=rngs) if attends else None
        block: type[RepMixerBlock | AttentionBlock] = AttentionBlock if attends else RepMixerBlock
        ratio, scale = config.mlp_ratios[i], config.layer_scale_init_value
        self.blocks = nnx.List(block(dim, ratio, dcls, rate, scale, rngs=rngs) for rate in drop_paths)

    def _layers(self) -> list[Layer]:
        layers = super()._layers()
        if self.pos_emb is not None:
            layers.insert(len(layers) - len(self.blocks), ("pos_emb", partial(self.pos_emb, positions=self.positions)))
        return layers


class FastViT(Backbone):
    checkpoint_renames = (
        # apple/ml-fastvit
        Rename(r"^patch_embed\.", "stem."),
        Rename(r"^network\.0\.", "stages.0.blocks."),
        Rename(r"^network\.1\.", "stages.1.downsample."),
        Rename(r"^network\.2\.", "stages.1.blocks."),
        Rename(r"^network\.3\.", "stages.2.downsample."),
        Rename(r"^network\.4\.", "stages.2.blocks."),
        Rename(r"^network\.5\.", "stages.3.downsample."),
        Rename(r"^network\.6\.", "stages.3.pos_emb."),
        Rename(r"^network\.7\.", "stages.3.blocks."),
        # timm
        Rename(r"^final_conv\.", "conv_exp."),
        Rename(r"\.se\.fc1\.", ".se.reduce."),
        Rename(r"\.se\.fc2\.", ".se.expand."),
        Rename(r"\.mlp\.", ".convffn."),
        Rename(r"\.gamma$", ""),
        # either
        Rename(r"^head\.(fc\.)?", "fc."),
        Rename(r"^stem\.(\d+)\.", r"stem.layers.\1."),
        Rename(r"\.downsample\.proj\.", ".downsample.layers."),
        Rename(r"\.pos_emb\.(pe|pos_enc)\.", ".pos_emb.conv."),
        Rename(r"\.(rbr_conv|conv_kxk)\.0\.", ".conv.branches.0."),
        Rename(r"\.(rbr_scale|conv_scale)\.", ".conv.branches.1."),
        Rename(r"\.(rbr_skip|identity)\.", ".conv.skip."),
        Rename(r"\.(lkb_origin|large_conv)\.", ".branches.0."),
        Rename(r"\.small_conv\.", ".branches.1."),
        Rename(r"\.mixer\.conv\.", ".mixer."),
        Rename(r"\.norm\.conv\.skip\.", ".norm."),
        # either, fused: the convolution that has taken the place of a whole module, or of a MobileOne's branches
        Rename(r"\.(token_mixer|pos_emb|downsample\.layers\.0)\.(reparam_conv|lkb_reparam)\.", r".\1."),
        Rename(r"\.reparam_conv\.", ".conv."),
    )

    def __init__(self, config: FastViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = config.transform
        dims, width = config.dims, 2 * config.dims[-1]
        rates = drop_path_rates(config.drop_path_rate, config.depths)

        def built(part: M) -> M:
            return reparameterise(part) if config.fused else part

        self.stem = built(stem(config.in_channels, dims[0], rngs))
        self.stages = nnx.List(built(FastViTStage(config, i, rates[i], rngs=rngs)) for i in range(len(dims)))
        self.conv_exp = built(MobileOne(dims[-1], width, (3, 1), groups=dims[-1], squeeze_excite=True, rngs=rngs))
        self.fc = classifier(width, config.num_classes, rngs, small_normal)

    def _layers(self) -> list[Layer]:
        return [*super()._layers(), ("conv_exp", self.conv_exp)]

    def pool(self, features: Array) -> Array:
        return features.mean((1, 2))


def _variant(size: str, config: FastViTConfig, *accuracy: Accuracy) -> Variant:
    folder = "https://docs-assets.developer.apple.com/ml-research/models/fastvit/image_classification_models"
    checkpoint = Published(f"{folder}/fastvit_{size}.pth.tar", accuracy=accuracy)
    dcls_checkpoint = zenodo(8370737, f"fastvit_{size}_v1_17lim_34el_seed0.pth.tar")
    return Variant(config, DclsConfig(34, 17, "v1"), checkpoint, dcls_checkpoint)


_DIMS = (64, 128, 256, 512)

VARIANTS = {
    "fastvit_sa24": _variant(
        "sa24",
        FastViTConfig((4, 4, 12, 4), _DIMS),
        Accuracy("authors", 82.7),
        Accuracy("timm", 82.706, 96.278),
    ),
    "fastvit_sa36": _variant(
        "sa36",
        FastViTConfig((6, 6, 18, 6), _DIMS, layer_scale_init_value=1e-6, transform=TRANSFORM_SA36),
        Accuracy("authors", 83.6),
        Accuracy("timm", 83.502, 96.632),  # of a smaller part of the picture, resized to 284
    ),
}

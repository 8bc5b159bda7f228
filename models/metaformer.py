"""CAFormer and ConvFormer (arXiv 2210.13452, sail-sg/metaformer), and with DCLS in their separable convolutions."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.arrays import along_channels
from dcls_jax.layers import Conv, DclsConfig, Positions
from dcls_jax.models.attention import self_attention
from dcls_jax.models.backbone import Backbone, Stage, drop_path_rates, each_pixel, small_normal, stochastic_depth
from dcls_jax.models.checkpoints import Rename
from dcls_jax.models.dcls import depthwise, shared_positions
from dcls_jax.models.published import Accuracy, Published, Variant, zenodo
from dcls_jax.models.transform import Transform

TRANSFORM = Transform(resize=224, crop=224)
HEAD_DIM = 32
Mixer = Literal["convolution", "attention"]


@dataclass(frozen=True)
class MetaFormerConfig:
    """depths, dims and token_mixers of the stages; dcls replaces the 7x7 depthwise convolutions."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    token_mixers: tuple[Mixer, ...]
    num_classes: int = 1000
    dcls: DclsConfig | None = None
    drop_path_rate: float = 0.0
    in_channels: int = 3
    transform: Transform = TRANSFORM

    def __post_init__(self) -> None:
        mixers = get_args(Mixer)
        if len(self.token_mixers) != len(self.depths) or not set(self.token_mixers) <= set(mixers):
            message = f"must name {' or '.join(mixers)} for each of the {len(self.depths)} stages"
            raise ValueError(f"token_mixers (={self.token_mixers}) {message}")


def _norm(dim: int, rngs: nnx.Rngs, *, bias: bool = False, epsilon: float = 1e-6) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=epsilon, use_bias=bias, use_fast_variance=False, rngs=rngs)


def _linear(in_dim: int, out_dim: int, rngs: nnx.Rngs, *, bias: bool = False) -> nnx.Linear:
    return nnx.Linear(in_dim, out_dim, use_bias=bias, kernel_init=small_normal, rngs=rngs)


def _conv(in_dim: int, out_dim: int, size: int, stride: int, padding: int, rngs: nnx.Rngs) -> Conv:
    zeros = jax.nn.initializers.zeros
    return Conv(
        in_dim,
        out_dim,
        (size, size),
        stride=stride,
        padding=padding,
        kernel_init=small_normal,
        bias_init=zeros,
        rngs=rngs,
    )


class StarReLU(nnx.Module):
    """s * relu(x)**2 + b, with learned numbers s and b."""

    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(1, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(1, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return along_channels(self.scale[...], x) * jnp.square(jax.nn.relu(x)) + along_channels(self.bias[...], x)


class Scale(nnx.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return along_channels(self.scale[...], x) * x


class SepConv(nnx.Module):
    """Inverted separable convolution (arXiv 1801.04381): a depthwise one, at twice the width, between linear layers."""

    def __init__(self, dim: int, dcls: DclsConfig | None, *, rngs: nnx.Rngs):
        self.pwconv1 = _linear(dim, 2 * dim, rngs)
        self.act1 = StarReLU()
        self.dwconv = depthwise(2 * dim, dcls, bias=False, kernel_init=small_normal, rngs=rngs)
        self.pwconv2 = _linear(2 * dim, dim, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x)), positions=positions))


class Attention(nnx.Module):
    """Self-attention between all pixels (arXiv 1706.03762), in heads of 32 channels."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        inner = HEAD_DIM * max(1, dim // HEAD_DIM)
        self.qkv = _linear(dim, 3 * inner, rngs)
        self.proj = _linear(inner, dim, rngs)

    def __call__(self, x: Array, positions: Positions | None = None) -> Array:
        """x (B, H, W, C) -> the same shape. Attention has no use for positions."""
        return each_pixel(self.proj, self_attention(each_pixel(self.qkv, x), HEAD_DIM))


class Mlp(nnx.Module):
    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.fc1 = _linear(dim, 4 * dim, rngs)
        self.act = StarReLU()
        self.fc2 = _linear(4 * dim, dim, rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.act(self.fc1(x)))


class MlpHead(nnx.Module):
    """Classifier with a hidden layer, activated by squared ReLU (arXiv 2109.08668)."""

    def __init__(self, dim: int, num_classes: int, *, rngs: nnx.Rngs):
        self.fc1 = _linear(dim, 4 * dim, rngs, bias=True)
        self.norm = _norm(4 * dim, rngs, bias=True, epsilon=1e-5)
        self.fc2 = _linear(4 * dim, num_classes, rngs, bias=True)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.norm(jnp.square(jax.nn.relu(self.fc1(x)))))


class Block(nnx.Module):
    """Tokens are mixed, then channels; `res_scale` lets the residual stream be scaled (arXiv 2110.09456)."""

    def __init__(
        self, dim: int, mixer: Mixer, dcls: DclsConfig | None, drop_path: float, res_scale: bool, *, rngs: nnx.Rngs
    ):
        self.norm1 = _norm(dim, rngs)
        self.token_mixer = Attention(dim, rngs=rngs) if mixer == "attention" else SepConv(dim, dcls, rngs=rngs)
        self.res_scale1 = Scale(dim) if res_scale else None
        self.norm2 = _norm(dim, rngs)
        self.mlp = Mlp(dim, rngs=rngs)
        self.res_scale2 = Scale(dim) if res_scale else None
        self.drop_path = stochastic_depth(drop_path, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        y = self.drop_path(self.token_mixer(self.norm1(x), positions=positions))
        x = y + (x if self.res_scale1 is None else self.res_scale1(x))
        y = self.drop_path(each_pixel(lambda x: self.mlp(self.norm2(x)), x))
        return y + (x if self.res_scale2 is None else self.res_scale2(x))


class Stem(nnx.Module):
    def __init__(self, in_channels: int, dim: int, *, rngs: nnx.Rngs):
        self.conv = _conv(in_channels, dim, 7, 4, 2, rngs)
        self.norm = _norm(dim, rngs)

    def __call__(self, images: Array) -> Array:
        return self.norm(self.conv(images))


class Downsample(nnx.Module):
    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.norm = _norm(in_dim, rngs)
        self.conv = _conv(in_dim, out_dim, 3, 2, 1, rngs)

    def __call__(self, x: Array) -> Array:
        return self.conv(self.norm(x))


class MetaFormerStage(Stage):
    """With DCLS, separable convolutions place their elements at the stage's `positions`."""

    def __init__(self, config: MetaFormerConfig, i: int, drop_paths: list[float], *, rngs: nnx.Rngs):
        dim, mixer, dcls = config.dims[i], config.token_mixers[i], config.dcls
        self.downsample = Downsample(config.dims[i - 1], dim, rngs=rngs) if i else None
        self.positions = None if mixer == "attention" else shared_positions(dcls, 2 * dim, 1, rngs)
        self.blocks = nnx.List(Block(dim, mixer, dcls, rate, i >= 2, rngs=rngs) for rate in drop_paths)


class MetaFormer(Backbone):
    checkpoint_renames = (
        # sail-sg/metaformer
        Rename(r"^downsample_layers\.0\.conv\.", "stem.conv."),
        Rename(r"^downsample_layers\.0\.post_norm\.", "stem.norm."),
        Rename(r"^downsample_layers\.(\d+)\.conv\.", r"stages.\1.downsample.conv."),
        Rename(r"^downsample_layers\.(\d+)\.pre_norm\.", r"stages.\1.downsample.norm."),
        Rename(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        # timm, whose head.norm is the norm before the original's head
        Rename(r"^head\.norm\.", "norm.", where=r"^stem\."),
        # both
        Rename(r"^head\.(?:fc\.)?(fc1|norm|fc2)\.", r"fc.\1."),
        Rename(r"\.scale$", ".weight"),
    )

    def __init__(self, config: MetaFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = config.transform
        width = config.dims[-1]
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        self.stem = Stem(config.in_channels, config.dims[0], rngs=rngs)
        self.stages = nnx.List(MetaFormerStage(config, i, rates[i], rngs=rngs) for i in range(len(config.depths)))
        self.norm = _norm(width, rngs, bias=True)
        self.fc = MlpHead(width, config.num_classes, rngs=rngs) if config.num_classes else None

    def pool(self, features: Array) -> Array:
        return self.norm(features.mean((1, 2)))


_SAIL = "https://huggingface.co/sail/dl/resolve/main"

VARIANTS = {
    "caformer_s18": Variant(
        MetaFormerConfig((3, 3, 9, 3), (64, 128, 320, 512), ("convolution",) * 2 + ("attention",) * 2),
        DclsConfig(34, 17, "v1"),
        Published(
            f"{_SAIL}/caformer/caformer_s18.pth",
            accuracy=(Accuracy("authors", 83.6), Accuracy("timm", 83.664, 96.526)),
        ),
        zenodo(8370737, "caformer_s18_v1_17lim_34el_seed0.pth.tar"),
    ),
    "convformer_s18": Variant(
        MetaFormerConfig((3, 3, 9, 3), (64, 128, 320, 512), ("convolution",) * 4),
        DclsConfig(40, 17, "v1"),
        Published(
            f"{_SAIL}/convformer/convformer_s18.pth",
            accuracy=(Accuracy("authors", 83.0), Accuracy("timm", 82.968, 96.246)),
        ),
        zenodo(8370737, "convformer_s18_v1_17lim_40el_seed0.pth.tar"),
    ),
}

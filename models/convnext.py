"""ConvNeXt (arXiv 2201.03545, facebookresearch/ConvNeXt) and, with DCLS, ConvNeXt-dcls (arXiv 2112.03740)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dcls_jax.arrays import along_channels
from dcls_jax.layers import Conv, DclsConfig, Positions
from dcls_jax.models.activations import gelu
from dcls_jax.models.backbone import (
    Backbone,
    Stage,
    classifier,
    drop_path_rates,
    each_pixel,
    small_normal,
    stochastic_depth,
)
from dcls_jax.models.checkpoints import Rename
from dcls_jax.models.dcls import depthwise, shared_positions
from dcls_jax.models.published import Accuracy, Published, Variant, zenodo
from dcls_jax.models.transform import Transform

TRANSFORM = Transform(resize=256, crop=224)


@dataclass(frozen=True)
class ConvNeXtConfig:
    """depths and dims: blocks and channels of the stages; dcls replaces the 7x7 depthwise convolutions."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int = 1000
    dcls: DclsConfig | None = None
    drop_path_rate: float = 0.0
    layer_scale_init_value: float = 1e-6  # 0: none, as in the original
    in_channels: int = 3
    transform: Transform = TRANSFORM


_zeros = jax.nn.initializers.zeros


def _norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


def _conv(in_dim: int, out_dim: int, size: int, rngs: nnx.Rngs) -> Conv:
    """Patches of size x size pixels, side by side."""
    return Conv(in_dim, out_dim, (size, size), stride=size, kernel_init=small_normal, bias_init=_zeros, rngs=rngs)


class Block(nnx.Module):
    """Depthwise convolution, then an inverted bottleneck on each pixel."""

    def __init__(self, dim: int, dcls: DclsConfig | None, drop_path: float, layer_scale: float, *, rngs: nnx.Rngs):
        self.dwconv = depthwise(dim, dcls, bias=True, rngs=rngs)
        self.norm = _norm(dim, rngs)
        self.pwconv1 = nnx.Linear(dim, 4 * dim, kernel_init=small_normal, rngs=rngs)
        self.pwconv2 = nnx.Linear(4 * dim, dim, kernel_init=small_normal, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(dim, layer_scale, jnp.float32)) if layer_scale > 0 else None
        self.drop_path = stochastic_depth(drop_path, rngs)

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        y = each_pixel(self._bottleneck, self.dwconv(x, positions=positions))
        return x + self.drop_path(y)

    def _bottleneck(self, x: Array) -> Array:
        y = self.pwconv2(gelu(self.pwconv1(self.norm(x))))
        return y if self.gamma is None else y * along_channels(self.gamma[...], y)


class Downsample(nnx.Module):
    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.norm = _norm(in_dim, rngs)
        self.conv = _conv(in_dim, out_dim, 2, rngs)

    def __call__(self, x: Array) -> Array:
        return self.conv(self.norm(x))


class Stem(nnx.Module):
    def __init__(self, in_channels: int, dim: int, *, rngs: nnx.Rngs):
        self.conv = _conv(in_channels, dim, 4, rngs)
        self.norm = _norm(dim, rngs)

    def __call__(self, images: Array) -> Array:
        return self.norm(self.conv(images))


class ConvNeXtStage(Stage):
    def __init__(self, config: ConvNeXtConfig, i: int, drop_paths: list[float], *, rngs: nnx.Rngs):
        dim, dcls, layer_scale = config.dims[i], config.dcls, config.layer_scale_init_value
        self.downsample = Downsample(config.dims[i - 1], dim, rngs=rngs) if i else None
        self.positions = shared_positions(dcls, dim, 1, rngs)
        self.blocks = nnx.List(Block(dim, dcls, drop_path, layer_scale, rngs=rngs) for drop_path in drop_paths)


class ConvNeXt(Backbone):
    checkpoint_renames = (
        # facebookresearch/ConvNeXt
        Rename(r"^downsample_layers\.0\.0\.", "stem.conv."),
        Rename(r"^downsample_layers\.0\.1\.", "stem.norm."),
        Rename(r"^downsample_layers\.(\d+)\.0\.", r"stages.\1.downsample.norm."),
        Rename(r"^downsample_layers\.(\d+)\.1\.", r"stages.\1.downsample.conv."),
        Rename(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        Rename(r"^head\.(weight|bias)$", r"fc.\1"),
        # timm
        Rename(r"^stem\.0\.", "stem.conv."),
        Rename(r"^stem\.1\.", "stem.norm."),
        Rename(r"\.downsample\.0\.", ".downsample.norm."),
        Rename(r"\.downsample\.1\.", ".downsample.conv."),
        Rename(r"\.conv_dw\.", ".dwconv."),
        Rename(r"\.mlp\.fc([12])\.", r".pwconv\1."),
        Rename(r"^head\.(norm|fc)\.", r"\1."),
    )

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = config.transform
        width = config.dims[-1]
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        self.stem = Stem(config.in_channels, config.dims[0], rngs=rngs)
        self.stages = nnx.List(ConvNeXtStage(config, i, rates[i], rngs=rngs) for i in range(len(config.depths)))
        self.norm = _norm(width, rngs)
        self.fc = classifier(width, config.num_classes, rngs, small_normal)

    def pool(self, features: Array) -> Array:
        return self.norm(features.mean((1, 2)))


def _variant(
    size: str, config: ConvNeXtConfig, dcls: DclsConfig, accuracy: tuple[Accuracy, ...], dcls_accuracy: Accuracy
) -> Variant:
    file = f"{size}_1k_224_ema.pth"
    checkpoint = Published(f"https://dl.fbaipublicfiles.com/convnext/convnext_{file}", accuracy=accuracy)
    return Variant(config, dcls, checkpoint, zenodo(7112021, f"convnext_dcls_{file}", dcls_accuracy))


VARIANTS = {
    "convnext_tiny": _variant(
        "tiny",
        ConvNeXtConfig((3, 3, 9, 3), (96, 192, 384, 768)),
        DclsConfig(34, 17, "v0"),
        (Accuracy("authors", 82.1), Accuracy("timm", 82.066, 95.854)),
        Accuracy("authors", 82.5),
    ),
    "convnext_small": _variant(
        "small",
        ConvNeXtConfig((3, 3, 27, 3), (96, 192, 384, 768)),
        DclsConfig(40, 17, "v0"),
        (Accuracy("authors", 83.1), Accuracy("timm", 83.144, 96.432)),
        Accuracy("authors", 83.7),
    ),
    "convnext_base": _variant(
        "base",
        ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024)),
        DclsConfig(40, 17, "v0"),
        (Accuracy("authors", 83.8), Accuracy("timm", 83.838, 96.746)),
        Accuracy("authors", 84.094, 96.958),
    ),
}

"""ResNet with bottleneck blocks (arXiv 1512.03385), as timm builds it, and with DCLS in its 3x3 convolutions."""

from dataclasses import dataclass

import jax
from flax import nnx
from jax import Array
from jax.nn.initializers import variance_scaling

from dcls_jax.layers import Conv, Dcls2d, DclsConfig, Positions, torch_uniform
from dcls_jax.models.backbone import Backbone, Stage, classifier, drop_path_rates, small_normal, stochastic_depth
from dcls_jax.models.checkpoints import Rename
from dcls_jax.models.dcls import shared_positions
from dcls_jax.models.norms import BatchNorm
from dcls_jax.models.published import Accuracy, Published, Variant, zenodo
from dcls_jax.models.transform import Transform

TRANSFORM = Transform(resize=235, crop=224)
EXPANSION = 4  # output channels of a bottleneck per plane
STEM_DIM = 64


@dataclass(frozen=True)
class ResNetConfig:
    """depths and dims: blocks and planes (channels inside a block) of the stages; dcls replaces 3x3 convolutions."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int = 1000
    dcls: DclsConfig | None = None
    drop_path_rate: float = 0.0
    in_channels: int = 3
    transform: Transform = TRANSFORM


def _conv(in_dim: int, out_dim: int, size: int, stride: int, rngs: nnx.Rngs) -> Conv:
    """Convolution without bias, initialised by He's normal over the outputs."""
    he_normal = variance_scaling(2.0, "fan_out", "normal")
    return Conv(
        in_dim, out_dim, (size, size), stride=stride, padding=size // 2, bias=False, kernel_init=he_normal, rngs=rngs
    )


def _spatial_conv(planes: int, stride: int, dcls: DclsConfig | None, rngs: nnx.Rngs) -> Conv | Dcls2d:
    """The 3x3 convolution of a block, or a DCLS in its place, to be handed its positions at each call."""
    if dcls is None:
        return _conv(planes, planes, 3, stride, rngs)
    return Dcls2d(
        planes,
        planes,
        dcls.kernel_count,
        stride=stride,
        padding=dcls.dilated_kernel_size // 2,
        dilated_kernel_size=dcls.dilated_kernel_size,
        bias=False,
        version=dcls.version,
        shared_positions=True,
        weight_init=small_normal,
        rngs=rngs,
    )


class Downsample(nnx.Module):
    """The shortcut of a block that changes size or width."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = _conv(in_dim, out_dim, 1, stride, rngs)
        self.norm = BatchNorm(out_dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """1x1 to `planes`, 3x3 with the stride, 1x1 to four times as many, and the shortcut."""

    def __init__(
        self, in_dim: int, planes: int, stride: int, dcls: DclsConfig | None, drop_path: float, *, rngs: nnx.Rngs
    ):
        out_dim = EXPANSION * planes
        self.conv1 = _conv(in_dim, planes, 1, 1, rngs)
        self.bn1 = BatchNorm(planes, rngs=rngs)
        self.conv2 = _spatial_conv(planes, stride, dcls, rngs)
        self.bn2 = BatchNorm(planes, rngs=rngs)
        self.conv3 = _conv(planes, out_dim, 1, 1, rngs)
        self.bn3 = BatchNorm(out_dim, scale=0.0, rngs=rngs)  # every block starts as its shortcut
        self.drop_path = stochastic_depth(drop_path, rngs)
        changes = stride > 1 or in_dim != out_dim
        self.downsample = Downsample(in_dim, out_dim, stride, rngs=rngs) if changes else None

    def __call__(self, x: Array, positions: Positions | None) -> Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y, positions=positions)))
        y = self.drop_path(self.bn3(self.conv3(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return jax.nn.relu(shortcut + y)


class Stem(nnx.Module):
    def __init__(self, in_channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv(in_channels, STEM_DIM, 7, 2, rngs)
        self.norm = BatchNorm(STEM_DIM, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        x = jax.nn.relu(self.norm(self.conv(images)))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class ResNetStage(Stage):
    def __init__(self, config: ResNetConfig, i: int, drop_paths: list[float], *, rngs: nnx.Rngs):
        planes, dcls = config.dims[i], config.dcls
        in_dim = EXPANSION * config.dims[i - 1] if i else STEM_DIM
        self.downsample = None  # the first block has the stride
        self.positions = shared_positions(dcls, planes, planes, rngs)
        self.blocks = nnx.List(
            Bottleneck(EXPANSION * planes if j else in_dim, planes, 2 if i and not j else 1, dcls, rate, rngs=rngs)
            for j, rate in enumerate(drop_paths)
        )


class ResNet(Backbone):
    checkpoint_renames = (
        Rename(r"^conv1\.", "stem.conv."),
        Rename(r"^bn1\.", "stem.norm."),
        Rename(r"^layer1\.(\d+)\.", r"stages.0.blocks.\1."),
        Rename(r"^layer2\.(\d+)\.", r"stages.1.blocks.\1."),
        Rename(r"^layer3\.(\d+)\.", r"stages.2.blocks.\1."),
        Rename(r"^layer4\.(\d+)\.", r"stages.3.blocks.\1."),
        Rename(r"\.downsample\.0\.", ".downsample.conv."),
        Rename(r"\.downsample\.1\.", ".downsample.norm."),
    )

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = config.transform
        width = EXPANSION * config.dims[-1]
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        self.stem = Stem(config.in_channels, rngs=rngs)
        self.stages = nnx.List(ResNetStage(config, i, rates[i], rngs=rngs) for i in range(len(config.depths)))
        self.fc = classifier(width, config.num_classes, rngs, torch_uniform(width), torch_uniform(width))

    def pool(self, features: Array) -> Array:
        return features.mean((1, 2))


_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download"

VARIANTS = {
    "resnet50": Variant(
        ResNetConfig((3, 4, 6, 3), (64, 128, 256, 512)),
        DclsConfig(5, 7, "v0"),
        Published(f"{_TIMM}/v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth", accuracy=(Accuracy("timm", 80.382, 94.598),)),
        zenodo(8373830, "resnet_dcls_kernel_5_model_best.pth.tar"),
    )
}

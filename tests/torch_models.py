"""The originals in PyTorch, for parity tests and side-by-side timing: timm's models with the `dcls` package's layers.

Needs the parity extra; see `make parity` for a set of versions that fit together.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CALIBRATED = 64  # image side for which batch statistics are those of real activations


def _torchvision_fits() -> bool:
    """Whether its compiled operators are for this torch."""
    found = importlib.util.find_spec("torchvision")
    operators = [*Path(found.origin).parent.glob("_C*")] if found and found.origin else []
    try:
        for path in operators:
            torch.ops.load_library(path)
    except OSError:
        return False
    return bool(operators)


def _without_torchvision_ops() -> None:
    """Let timm import a torchvision whose compiled operators do not match this torch: nothing here uses them."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    original = torch.library.register_fake

    def register(name, *arguments, **options):
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return original(name, *arguments, **options)

    torch.library.register_fake = register
    _without_torchvision_ops.library = library  # the definitions go with it


if not _torchvision_fits():
    _without_torchvision_ops()
import timm  # noqa: E402

logging.disable(logging.WARNING)  # dcls warns once per layer that its CUDA kernel is not there
from DCLS.construct.modules import Dcls2d  # noqa: E402

logging.disable(logging.NOTSET)

from dcls_jax import DclsConfig  # noqa: E402
from dcls_jax.models.create import MODELS  # noqa: E402

_TIMM = {"resnet": {"depths": "layers", "dims": "channels"}, "fastvit": {"depths": "layers", "dims": "embed_dims"}}


def torch_model(name: str, dcls: bool | DclsConfig | None, seed: int | None = None, **config: Any) -> nn.Module:
    """A model of the study, in evaluation mode; with a seed, every parameter and buffer is random.

    dcls, config: as of our `create_model`.
    """
    named = next((names for family, names in _TIMM.items() if name.startswith(family)), {})
    model = timm.create_model(name, **{named.get(key, key): value for key, value in config.items()})
    if "former" in name:
        model.head.fc.norm.eps = 1e-5  # the original's; timm has 1e-6
    if dcls:
        _use_dcls(model, name, dcls if isinstance(dcls, DclsConfig) else MODELS[name][1].dcls)
    if seed is not None:
        _randomise(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _use_dcls(model: nn.Module, name: str, setting: DclsConfig) -> None:
    """Put DCLS where the study does; layers of a stage share the positions of its first."""
    widest, shared = 0, None
    for path, conv in list(model.named_modules()):
        if not isinstance(conv, nn.Conv2d) or not _is_replaced(name, conv):
            continue
        logging.disable(logging.WARNING)
        layer = Dcls2d(
            conv.in_channels,
            conv.out_channels,
            setting.kernel_count,
            stride=conv.stride,
            padding=setting.dilated_kernel_size // 2,
            dilated_kernel_size=setting.dilated_kernel_size,
            groups=conv.groups,
            bias=conv.bias is not None,
            version=setting.version,
        )
        logging.disable(logging.NOTSET)
        if conv.in_channels > widest:
            widest, shared = conv.in_channels, layer.P
        layer.P = shared
        model.set_submodule(path, layer)


def _is_replaced(name: str, conv: nn.Conv2d) -> bool:
    if name == "resnet50":
        return conv.kernel_size == (3, 3)
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return depthwise and (not name.startswith("fastvit") or conv.kernel_size == (7, 7))


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Values that a wrong port cannot hide behind: nothing 0, 1 or tiny, statistics near those of activations."""

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for path, parameter in model.named_parameters():
        leaf = path.rsplit(".", 1)[-1]
        if leaf == "P":
            limit = model.get_submodule(path[:-2]).dilated_kernel_size[0] // 2
            parameter.copy_(uniform(parameter, -limit, limit))
        elif any(part in path for part in ("gamma", "layer_scale", "res_scale")):
            parameter.copy_(uniform(parameter, 0.4, 0.8))
        elif parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.copy_(1.4 * torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        elif leaf == "weight":
            parameter.copy_(uniform(parameter, 0.7, 1.3))
        else:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    if norms:
        model.train()
        for _ in range(2):
            model(torch.randn(8, 3, CALIBRATED, CALIBRATED, generator=generator))
    for norm in norms:
        norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn(norm.running_mean.shape, generator=generator)
        norm.running_var *= uniform(norm.running_var, 0.8, 1.2)


@torch.no_grad()
def constructed(model: nn.Module) -> nn.Module:
    """The same model with each DCLS layer replaced by the convolution that it constructs."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, Dcls2d):
            kernel = layer.DCK(layer.weight, layer.P, layer.SIG)
            conv = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                kernel.shape[-2:],
                stride=layer.stride,
                padding=layer.padding,
                groups=layer.groups,
                bias=layer.bias is not None,
            )
            conv.weight.copy_(kernel)
            if layer.bias is not None:
                conv.bias.copy_(layer.bias)
            model.set_submodule(path, conv)
    return model


def study_maps(model: nn.Module, images: Tensor, one_hot: Tensor) -> dict[str, Tensor]:
    """The study's recipe: full forward and full backward; images (B, 3, H, W), one_hot (B, classes).

    Returns logits, activations and gradients (B, C, h, w) at the explained layer, and both maps (B, h, w), not resized.
    """
    activations = model.forward_features(images)
    kept: list[Tensor] = []
    activations.register_hook(kept.append)
    logits = model.forward_head(activations)
    model.zero_grad(set_to_none=True)
    (logits * one_hot).sum().backward()
    channels = kept[0].mean((2, 3), keepdim=True) * activations.detach()
    positive = torch.relu(channels).mean(1)
    least, most = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    normalised = (positive - least) / (most - least)
    return {
        "logits": logits.detach(),
        "activations": activations.detach(),
        "gradients": kept[0],
        "grad_cam": torch.relu(channels.mean(1)),
        "threshold_grad_cam": torch.where(normalised < 0.3, 0.3, normalised),
    }

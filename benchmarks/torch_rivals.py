"""What is timed beside ours: the same in PyTorch, on its GPU if it has one. Needs torch; models, the parity extra."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

CLASSES = 1000
Timed = Callable[[], Any]


def there_is_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def device() -> str:
    """Where torch computes; cuDNN searches, and products may be TF32 as XLA's are."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait_for(_: object = None) -> None:
    """For all that torch was asked."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def waited_for(call: Timed) -> Timed:
    """A call that ends when torch is done, and returns None."""

    def called() -> None:
        call()
        wait_for()

    return called


def depthwise(
    xs: Sequence[jax.Array], ks: Sequence[jax.Array], stride: int, gradient: bool, layout: str = "channels_last"
) -> Timed:
    """`depthwise_conv` of images (B, H, W, C) with kernels (kh, kw, C), each pair, with both gradients or without.

    layout: "channels_last" or "contiguous_format" (NCHW). On a GPU a CUDA graph, so that launches cost nothing.
    """
    import torch

    where, form = device(), getattr(torch, layout)

    def tensor(array: jax.Array) -> Any:
        return torch.tensor(np.asarray(array, np.float32), dtype=getattr(torch, array.dtype.name), device=where)

    pairs = []
    for x, k in zip(xs, ks, strict=True):
        image = tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=form)
        kernel = tensor(k).permute(2, 0, 1)[:, None].contiguous()
        pairs.append((image.requires_grad_(gradient), kernel.requires_grad_(gradient)))

    def one(image: Any, kernel: Any) -> Any:
        y = torch.nn.functional.conv2d(
            image, kernel, padding=kernel.shape[-1] // 2, stride=stride, groups=kernel.shape[0]
        )
        return torch.autograd.grad(y, (image, kernel), y.detach()) if gradient else y

    def call() -> Any:
        return [one(*pair) for pair in pairs]

    return _graphed(call) if where == "cuda" else call


def _graphed(call: Timed) -> Timed:
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        kept = call()
    return lambda: (graph.replay(), kept)[0]


def study_grad_cam(name: str, dcls: bool, images: np.ndarray) -> Timed:
    """The study's recipe: full forward, full backward, DCLS kernels constructed at each call. images (B, H, W, 3)."""
    from tests.torch_models import study_maps, torch_model

    model, x, one_hot = torch_model(name, dcls).to(device()), *_inputs(images, "float32")
    return lambda: study_maps(model, x, one_hot) and None


def careful_grad_cam(
    name: str, dcls: bool, images: np.ndarray, *, dtype: str = "float32", compiled: bool = False
) -> Timed:
    """The best a careful user could write: channels-last, kernels constructed once, the gradient of the head alone."""
    import torch

    from tests.torch_models import constructed, torch_model

    model = constructed(torch_model(name, dcls))
    model = model.to(device(), getattr(torch, dtype), memory_format=torch.channels_last)
    features = torch.compile(model.forward_features) if compiled else model.forward_features
    x, one_hot = _inputs(images, dtype)

    def explain() -> Any:
        with torch.no_grad():
            activations = features(x)
        activations = activations.detach().requires_grad_()
        score = (model.forward_head(activations) * one_hot).sum()
        (gradients,) = torch.autograd.grad(score, activations)
        with torch.no_grad():
            return torch.relu((gradients.mean((2, 3), keepdim=True) * activations).mean(1))

    return explain


def grad_cam(name: str, dcls: bool, images: np.ndarray, dtype: str, recipe: str) -> Timed:
    """By recipe: "careful", "compiled", or "study", which is in float32."""
    if recipe == "study":
        return study_grad_cam(name, dcls, images)
    return careful_grad_cam(name, dcls, images, dtype=dtype, compiled=recipe == "compiled")


def _inputs(images: np.ndarray, dtype: str) -> tuple[Any, Any]:
    """Images, channels-last, and one-hot targets."""
    import torch

    x = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device(), dtype=getattr(torch, dtype))
    one_hot = torch.nn.functional.one_hot(torch.arange(len(images)), CLASSES).to(x)
    return x.contiguous(memory_format=torch.channels_last), one_hot

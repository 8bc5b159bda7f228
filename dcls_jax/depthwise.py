"""Depthwise convolution as a JAX primitive, lowered by whatever is fastest on the platform.

XLA lowers a depthwise convolution to a loop that is 10 to 100 times slower than the machine (jax issue 23713). As a
primitive, the convolution has its own derivatives in every mode, its own batching, and a lowering per platform.

Three bilinear maps are each other's derivatives: the convolution y = F(x, k), the gradient to the kernel G(x, y), and
the gradient to the image, which is F again, of y and the kernel turned around.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dcls_jax import native
from dcls_jax.lowerings import Pads, Strides, dft, direct, fft, shifts
from dcls_jax.padding import Padding, explicit_padding

Method = Literal["auto", "direct", "fft", "dft", "shifts", "native"]
Convolution = Callable[[Array, Array, Pads, Strides], Array]


@dataclass(frozen=True)
class Lowering:
    """A way to convolve, and the one whose transpose gives the gradient to the kernel."""

    convolve: Convolution
    transposed: Convolution
    cpu_only: bool = False


LOWERINGS: dict[str, Lowering] = {
    "direct": Lowering(direct, direct),
    "fft": Lowering(fft, fft),
    "dft": Lowering(dft, dft),
    "shifts": Lowering(shifts, dft),  # its own transpose takes ten times as long
    "native": Lowering(native.depthwise, dft, cpu_only=True),  # at stride 1 there is a native kernel for the gradient
}
# Lowerings by the time they take, on each platform that was at hand; `benchmarks/depthwise.py --table` measures them.
_FASTEST: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("fastest.json").read_text())


def depthwise_conv(
    x: Array,
    kernel: Array,
    *,
    padding: Padding,
    stride: int | tuple[int, int] = 1,
    method: Method = "auto",
) -> Array:
    """Depthwise cross-correlation: each channel with its own 2-D kernel.

    x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C) in x's dtype.
    padding: a number, "SAME", "VALID", or one number or (low, high) pair per axis.
    method: a lowering, or "auto" for the one measured fastest for this platform and shape; the environment variable
    DCLS_JAX_DEPTHWISE, where it is set, is taken for "auto".
    Raises ValueError where shapes do not fit or the method is unknown or not built; and, when the program is compiled,
    where the method is "native" and the platform is not a CPU.
    """
    if x.ndim != 4 or kernel.ndim != 3 or x.shape[-1] != kernel.shape[-1]:
        raise ValueError(f"x {x.shape} must be (B, H, W, C) and kernel {kernel.shape} (kh, kw, C), with equal C")
    strides = (stride, stride) if isinstance(stride, int) else (stride[0], stride[1])
    pads = explicit_padding(padding, size=x.shape[1:3], kernel_size=kernel.shape[:2], stride=strides)
    if any(s + sum(pair) < k for s, pair, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)):
        raise ValueError(f"kernel {kernel.shape} is larger than the image {x.shape} with its padding {pads}")
    chosen = os.environ.get("DCLS_JAX_DEPTHWISE", "auto") if method == "auto" else method
    if chosen != "auto" and chosen not in LOWERINGS:
        raise ValueError(f"method (={chosen!r}) must be one of auto, {', '.join(LOWERINGS)}")
    if chosen == "native" and not native.supports(x, strides):
        raise ValueError(f"method 'native' is not built here, or not for {x.dtype} at strides {strides}")
    return _convolve.bind(x, kernel.astype(x.dtype), pads=(pads[0], pads[1]), strides=strides, method=chosen)


def fastest(platform: str, x: Array, kernel_size: tuple[int, ...], strides: Strides, *, native_too: bool = True) -> str:
    """The lowering that "auto" means: of the nearest case in fastest.json, the first that there is; else XLA's own."""
    stride = min(max(strides), 2)
    cases = [case for case in _FASTEST.get(platform, []) if (case["dtype"], case["stride"]) == (x.dtype.name, stride)]
    if not cases:
        return "direct"

    def distance(case: dict[str, Any]) -> float:
        pairs = (case["size"] ** 2, math.prod(x.shape[1:3])), (case["kernel"] ** 2, math.prod(kernel_size))
        return sum(abs(math.log(a / b)) for a, b in pairs)

    order: list[str] = min(cases, key=distance)["order"]
    return next(method for method in order if method != "native" or (native_too and native.supports(x, strides)))


def _chosen(
    method: str, x: Array, kernel_size: tuple[int, ...], strides: Strides, *, platform: str, exported: bool
) -> str:
    """The lowering for one platform. An exported program is for any machine: it calls no library of this one's."""
    if method == "auto":
        return fastest(platform, x, kernel_size, strides, native_too=not exported)
    if LOWERINGS[method].cpu_only and platform != "cpu":
        raise ValueError(f"method (={method!r}, or DCLS_JAX_DEPTHWISE) is for CPUs, and this program is for {platform}")
    return method


# ----- F: the convolution --------------------------------------------------------------------------------------------

_convolve = Primitive("depthwise_conv")


def _lower_convolve(x: Array, kernel: Array, *, pads: Pads, strides: Strides, method: str, **target: Any) -> Array:
    chosen = _chosen(method, x, kernel.shape[:2], strides, **target)
    return LOWERINGS[chosen].convolve(x, kernel, pads, strides)


def _transpose_image(y: Array, x: Any, kernel: Array, *, pads: Pads, strides: Strides, method: str) -> Array:
    """dF/dx: y, spread out by the strides, convolved with the kernel turned around."""
    spread, left_over = [], []
    for size, k, (low, _), stride, out in zip(
        x.aval.shape[1:3], kernel.shape[:2], pads, strides, y.shape[1:3], strict=True
    ):
        before = k - 1 - low
        spread.append((before, size + k - 1 - before - ((out - 1) * stride + 1), stride - 1))
        left_over.append((0, 0))
    if strides == (1, 1) and min(edge for before, after, _ in spread for edge in (before, after)) >= 0:
        left_over = [(before, after) for before, after, _ in spread]  # a lowering may skip padding, not zeros
    else:
        y = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    turned = kernel[::-1, ::-1]
    return _convolve.bind(y, turned, pads=(left_over[0], left_over[1]), strides=(1, 1), method=method)


def _transpose_kernel(y: Array, x: Array, kernel: Any, *, pads: Pads, strides: Strides, method: str) -> Array:
    return _correlate.bind(x, y, pads=pads, strides=strides, method=method, size=kernel.aval.shape[:2])


def _batch_convolve(arguments: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    (x, kernel), (x_dim, kernel_dim) = arguments, dims
    if kernel_dim is None:
        x = jnp.moveaxis(x, x_dim, 0)
        y = _convolve.bind(x.reshape(-1, *x.shape[2:]), kernel, **params)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    # Kernels of their own are channels of their own.
    count = kernel.shape[kernel_dim]
    y = _convolve.bind(_as_channels(x, x_dim, count), _as_channels(kernel, kernel_dim, count), **params)
    return y.reshape(*y.shape[:-1], count, -1), y.ndim - 1


def _as_channels(x: Array, dim: int | None, count: int) -> Array:
    """A batch axis merged into the channels, the last axis; repeated if there is none."""
    x = jnp.stack([x] * count, -2) if dim is None else jnp.moveaxis(x, dim, -2)
    return x.reshape(*x.shape[:-2], -1)


# ----- G: the gradient to the kernel ---------------------------------------------------------------------------------

_correlate = Primitive("depthwise_kernel_gradient")


def _lower_correlate(
    x: Array, y: Array, *, pads: Pads, strides: Strides, method: str, size: tuple[int, int], **target: Any
) -> Array:
    chosen = _chosen(method, x, size, strides, **target)
    if chosen == "native" and strides == (1, 1):
        return native.kernel_gradient(x, y, pads, size)
    convolve = LOWERINGS[chosen].transposed
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: convolve(x, kernel, pads, strides), kernel)(y)[0]


def _correlate_to_image(kernel: Array, x: Any, y: Array, *, size: tuple[int, int], **params: Any) -> Array:
    return _transpose_image(y, x, kernel, **params)


def _correlate_to_output(kernel: Array, x: Array, y: Any, *, size: tuple[int, int], **params: Any) -> Array:
    return _convolve.bind(x, kernel, **params)


def _batch_correlate(arguments: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    count = next(a.shape[dim] for a, dim in zip(arguments, dims, strict=True) if dim is not None)
    x, y = (_as_channels(a, dim, count) for a, dim in zip(arguments, dims, strict=True))
    kernel = _correlate.bind(x, y, **params)
    return kernel.reshape(*kernel.shape[:-1], count, -1), 2


# ----- Registration --------------------------------------------------------------------------------------------------


def _register(
    primitive: Primitive, lowering: Any, transposes: tuple[Any, Any], batch: Any, static: tuple[str, ...]
) -> None:
    compiled = jax.jit(primitive.bind, static_argnames=static)

    @primitive.def_impl
    def evaluate(*arrays: Array, **params: Any) -> Array:
        with jax.disable_jit(False):  # a primitive is a program even there; else it would ask for itself without end
            return compiled(*arrays, **params)

    for platform in ("cpu", "cuda", "rocm", "tpu"):
        mlir.register_lowering(primitive, partial(_lower, lowering, platform), platform=platform)
    mlir.register_lowering(primitive, partial(_lower, lowering, "other platforms"))
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = batch


def _lower(lowering: Any, platform: str, context: Any, *arrays: Any, **params: Any) -> Any:
    target = {"platform": platform, "exported": context.module_context.lowering_parameters.for_export}
    return mlir.lower_fun(partial(lowering, **target), multiple_results=False)(context, *arrays, **params)


@_convolve.def_abstract_eval
def _convolved(x: ShapedArray, kernel: ShapedArray, *, pads: Pads, strides: Strides, method: str) -> ShapedArray:
    out = [
        (size + sum(pair) - k) // stride + 1
        for size, pair, k, stride in zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True)
    ]
    return ShapedArray((x.shape[0], *out, x.shape[3]), x.dtype)


@_correlate.def_abstract_eval
def _correlated(x: ShapedArray, y: ShapedArray, *, size: tuple[int, int], **_: Any) -> ShapedArray:
    return ShapedArray((*size, x.shape[3]), x.dtype)


_register(
    _convolve,
    _lower_convolve,
    (_transpose_image, _transpose_kernel),
    _batch_convolve,
    ("pads", "strides", "method"),
)
_register(
    _correlate,
    _lower_correlate,
    (_correlate_to_image, _correlate_to_output),
    _batch_correlate,
    ("pads", "strides", "method", "size"),
)

"""The ways of convolving depthwise, one row each, and which of them a platform takes."""

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
from jax import Array

from dcls_jax import native, pallas, triton
from dcls_jax.lowerings import Pads, Strides, bands, dft, direct, fft, shifts, toeplitz
from dcls_jax.native import cuda

Method = Literal["auto", "direct", "fft", "dft", "shifts", "toeplitz", "bands", "native", "cuda", "triton", "pallas"]
Convolution = Callable[[Array, Array, Pads, Strides], Array]  # x, kernel
KernelGradient = Callable[[Array, Array, Pads, Strides, tuple[int, int]], Array]  # x, gradient to the output; size


@dataclass(frozen=True)
class Lowering:
    """A way to convolve, and to take the gradient to the kernel; the gradient to the image is a convolution too.

    supports: whether a platform has it for images of such a type at such strides.
    portable: whether its programs run on a machine without this library.
    local: whether a pixel beyond the kernel's reach, not a number or 1e6 times the others, changes nothing.
    divided_by_xla: whether XLA divides the convolution among devices itself; such programs are kept from run to run.
    Not so the gradient to the kernel: of XLA's own, divided by images, it makes another (jaxlib 0.10.2).
    """

    convolve: Convolution
    kernel_gradient: KernelGradient
    supports: Callable[[str, Any, Strides], bool] = lambda platform, x, strides: True
    portable: bool = True
    local: bool = True
    divided_by_xla: bool = False


def transpose_of(convolve: Convolution) -> KernelGradient:
    """The gradient to the kernel that JAX derives."""

    def kernel_gradient(x: Array, y: Array, pads: Pads, strides: Strides, size: tuple[int, int]) -> Array:
        kernel = jax.ShapeDtypeStruct((*size, x.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda kernel: convolve(x, kernel, pads, strides), kernel)(y)[0]

    return kernel_gradient


def _native_kernel_gradient(x: Array, y: Array, pads: Pads, strides: Strides, size: tuple[int, int]) -> Array:
    """There is a native kernel for it at stride 1."""
    if strides == (1, 1):
        return native.kernel_gradient(x, y, pads, size)
    return transpose_of(dft)(x, y, pads, strides, size)


LOWERINGS: dict[str, Lowering] = {
    "direct": Lowering(direct, transpose_of(direct), divided_by_xla=True),
    "fft": Lowering(fft, transpose_of(fft), local=False),
    "dft": Lowering(dft, transpose_of(dft), local=False),
    "shifts": Lowering(shifts, transpose_of(dft)),  # its own transpose takes ten times as long
    "toeplitz": Lowering(toeplitz, transpose_of(toeplitz), local=False),
    "bands": Lowering(bands, transpose_of(bands), local=False),
    "native": Lowering(native.depthwise, _native_kernel_gradient, native.supports, portable=False),
    "cuda": Lowering(cuda.depthwise, cuda.kernel_gradient, cuda.supports, portable=False),
    "triton": Lowering(triton.depthwise, triton.kernel_gradient, triton.supports, portable=False),
    "pallas": Lowering(pallas.depthwise, pallas.kernel_gradient, pallas.supports),
}
# Their names by the time they take, on each platform that was at hand; `benchmarks/depthwise.py --table` measures it.
FASTEST: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("fastest.json").read_text())
ESTIMATED = ("tpu",)  # was not at hand: by the cycles of its compiler's schedules (benchmarks/README.md)


def lowering_platform() -> str:
    """The platform that is here as lowerings and fastest.json know it: "cuda" or "rocm", where JAX says "gpu"."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"


def asked_for() -> str:
    """The lowering that the environment variable DCLS_JAX_DEPTHWISE asks for, "auto" where it is not set."""
    return os.environ.get("DCLS_JAX_DEPTHWISE", "auto")


def choose(method: str, platform: str, x: Array, size: tuple[int, ...], strides: Strides, *, exported: bool) -> str:
    """The lowering for one platform. An exported program is for any machine: "auto" calls no library of this one's.

    Raises ValueError where a method is asked for that the platform does not have.
    """
    if method == "auto":
        return fastest(platform, x, size, strides, portable=exported)
    if not LOWERINGS[method].supports(platform, x, strides):
        raise ValueError(
            f"method (={method!r}, or DCLS_JAX_DEPTHWISE) does not support {x.dtype} at strides {strides} on "
            f"{platform} for images {x.shape}, or was not built at install"
        )
    return method


def fastest(platform: str, x: Any, size: tuple[int, ...], strides: Strides, *, portable: bool = False) -> str:
    """The lowering that "auto" means: of the nearest case in fastest.json, the first local one; else XLA's own.

    portable: only what runs on a machine without this library.
    """
    _say_what_is_unmeasured(platform)

    def there_is(method: str) -> bool:
        lowering = LOWERINGS[method]
        return lowering.local and (lowering.portable or not portable) and lowering.supports(platform, x, strides)

    order: list[str] = _nearest_case(platform, x, size, strides).get("order", [])
    return next((method for method in order if there_is(method)), "direct")


def _nearest_case(platform: str, x: Any, size: tuple[int, ...], strides: Strides) -> dict[str, Any]:
    """The row of fastest.json for the most similar convolution; empty where there is none of its dtype and stride."""
    stride = min(max(strides), 2)
    cases = [case for case in FASTEST.get(platform, []) if (case["dtype"], case["stride"]) == (x.dtype.name, stride)]

    def distance(case: dict[str, Any]) -> float:
        pairs = (case["size"] ** 2, math.prod(x.shape[1:3])), (case["kernel"] ** 2, math.prod(size))
        return sum(abs(math.log(a / b)) for a, b in pairs)

    return min(cases, key=distance, default={})


def keeps_matrices(platform: str) -> bool:
    """Whether some frozen convolutions are products with matrices made once, and no lowering is asked for."""
    return asked_for() == "auto" and any("kept" in case for case in FASTEST.get(platform, []))


def keeps_matrix(platform: str, x: Any, size: tuple[int, ...], strides: Strides) -> bool:
    """Whether this convolution is one of them: "kept" in fastest.json says up to how many channels."""
    return x.shape[-1] <= int(_nearest_case(platform, x, size, strides).get("kept", 0))


@cache
def _say_what_is_unmeasured(platform: str) -> None:
    if platform in ESTIMATED or platform not in FASTEST:
        taken = "what the compiler schedules best" if platform in ESTIMATED else "XLA's own"
        logging.getLogger(__name__).debug("depthwise convolution on %s: not measured, %s is taken", platform, taken)

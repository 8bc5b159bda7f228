"""Depthwise convolution, by whatever is fastest on the platform.

XLA lowers a depthwise convolution to a loop that is 10 to 100 times slower than the machine (jax issue 23713). A call
travels so: a layer calls `convolve` (convolution.py), that calls `depthwise_conv`, which binds a primitive
(primitives.py) with derivatives, batching and sharding of its own; when the program is compiled, for a platform that is
then known, the primitive takes a row of `LOWERINGS` (methods.py), and the row's functions (lowerings.py, native/,
triton.py, pallas.py) say what is computed.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dcls_jax.arrays import promoted
from dcls_jax.methods import LOWERINGS, Method, asked_for
from dcls_jax.padding import Padding, explicit_padding, per_axis
from dcls_jax.primitives import depthwise_conv_p

Precision = str | lax.Precision | None


def depthwise_conv(
    x: Array,
    kernel: Array,
    *,
    padding: Padding,
    stride: int | tuple[int, int] = 1,
    method: Method = "auto",
    precision: Precision = None,
) -> Array:
    """Depthwise cross-correlation: each channel with its own 2-D kernel.

    x (B, H, W, C), kernel (kh, kw, C) -> (B, H', W', C), in the dtype to which theirs promote. Both may be sharded over
    channels, x also over the batch.
    padding: a number, "SAME", "VALID", or one number or (low, high) pair per axis.
    method: a lowering, or "auto" for the one measured fastest for this platform and shape; the environment variable
    DCLS_JAX_DEPTHWISE, where it is set, is taken for "auto".
    precision: of products on hardware that has several; unless given, JAX's default.
    Raises ValueError where shapes, dtypes or shardings do not fit or the method is unknown; and, when the program is
    compiled, where the platform does not have the method ("pallas" is for TPUs, "cuda" and "triton" for NVIDIA GPUs,
    "native" for CPUs, it and "cuda" where the native library was built).
    """
    if x.ndim != 4 or kernel.ndim != 3 or x.shape[-1] != kernel.shape[-1]:
        raise ValueError(f"x {x.shape} must be (B, H, W, C) and kernel {kernel.shape} (kh, kw, C), with equal C")
    strides = per_axis(stride, 2, "stride")
    pads = explicit_padding(padding, size=x.shape[1:3], kernel_size=kernel.shape[:2], stride=strides)
    if 0 in (*x.shape[1:], *kernel.shape):
        raise ValueError(f"x {x.shape} and kernel {kernel.shape} must hold pixels, cells and channels")
    if any(s + sum(pair) < k for s, pair, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)):
        raise ValueError(f"kernel {kernel.shape} is larger than the image {x.shape} with its padding {pads}")
    chosen = asked_for() if method == "auto" else method
    if chosen != "auto" and chosen not in LOWERINGS:
        raise ValueError(f"method (={chosen!r}) must be one of auto, {', '.join(LOWERINGS)}")
    x, kernel = _alike(*promoted(jnp.asarray(x), jnp.asarray(kernel)))
    return depthwise_conv_p.bind(
        x,
        kernel,
        pads=(pads[0], pads[1]),
        strides=(strides[0], strides[1]),
        method=chosen,
        precision=None if precision is None else lax.Precision(precision),
    )


def _alike(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Both spread over the devices of a mesh by the same channels, and varying over the same axes of a `shard_map`.

    What x and kernel lack is added here, and so taken back from their gradients.
    """
    mesh, (batch, *size, x_channels) = jax.typeof(x).sharding.mesh, jax.typeof(x).sharding.spec
    *cells, kernel_channels = jax.typeof(kernel).sharding.spec
    if any(axis is not None for axis in (*size, *cells)):
        raise ValueError(
            f"x {jax.typeof(x)} and kernel {jax.typeof(kernel)} may be sharded by batch and channels alone"
        )
    channels = kernel_channels if x_channels is None else x_channels
    if x_channels != channels:
        x = jax.sharding.reshard(x, NamedSharding(mesh, P(batch, None, None, channels)))
    if kernel_channels != channels:
        kernel = jax.sharding.reshard(kernel, NamedSharding(mesh, P(None, None, channels)))
    x_varies, kernel_varies = jax.typeof(x).mat.varying, jax.typeof(kernel).mat.varying
    x = lax.pcast(x, tuple(kernel_varies - x_varies), to="varying")
    return x, lax.pcast(kernel, tuple(x_varies - kernel_varies), to="varying")

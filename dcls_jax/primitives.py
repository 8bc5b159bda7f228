"""Depthwise convolution as JAX primitives: types, derivatives in every mode, batching, sharding, lowering.

Three bilinear maps are each other's derivatives: the convolution y = F(x, k), the gradient to the kernel G(x, y), and
the gradient to the image, which is F again, of y and the kernel turned around.
"""

import math
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax._src.dispatch import prim_requires_devices_during_lowering
from jax.core import ShapedArray
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dcls_jax.lowerings import Pads, Strides
from dcls_jax.methods import LOWERINGS, Lowering, choose
from dcls_jax.padding import output_size

# ----- F: the convolution --------------------------------------------------------------------------------------------

depthwise_conv_p = Primitive("depthwise_conv")


def _convolve(x: Array, kernel: Array, *, lowering: Lowering, pads: Pads, strides: Strides, precision: Any) -> Array:
    out = output_size(x.shape[1:3], kernel.shape[:2], pads, strides)
    if math.prod(shape := (x.shape[0], *out, x.shape[3])) == 0:
        return jnp.zeros(shape, x.dtype)
    with _precision(precision):
        return lowering.convolve(x, kernel, pads, strides)


def _precision(precision: lax.Precision | None) -> AbstractContextManager[None]:
    return nullcontext() if precision is None else jax.default_matmul_precision(precision.name.lower())


@depthwise_conv_p.def_abstract_eval
def _type_of_output(x: ShapedArray, kernel: ShapedArray, *, pads: Pads, strides: Strides, **_: Any) -> ShapedArray:
    """x's own type, which says over which devices it is spread and varies, in another size."""
    out = output_size(x.shape[1:3], kernel.shape[:2], pads, strides)
    return x.update(shape=(x.shape[0], *out, x.shape[3]), weak_type=False)


def _gradient_to_image(y: Array, x: Any, kernel: Array, *, pads: Pads, strides: Strides, **how: Any) -> Array:
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
    turned = lax.rev(kernel, (0, 1))
    return depthwise_conv_p.bind(y, turned, pads=(left_over[0], left_over[1]), strides=(1, 1), **how)


def _gradient_to_kernel(y: Array, x: Array, kernel: Any, **params: Any) -> Array:
    return depthwise_kernel_gradient_p.bind(x, y, size=kernel.aval.shape[:2], **params)


def _batch_convolve(arguments: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    (x, kernel), (x_dim, kernel_dim) = arguments, dims
    if kernel_dim is None:
        x = jnp.moveaxis(x, x_dim, 0)
        y = depthwise_conv_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **params)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    # Kernels of their own are channels of their own.
    count = kernel.shape[kernel_dim]
    y = depthwise_conv_p.bind(_as_channels(x, x_dim, count), _as_channels(kernel, kernel_dim, count), **params)
    return y.reshape(*y.shape[:-1], count, -1), y.ndim - 1


def _as_channels(x: Array, dim: int | None, count: int) -> Array:
    """A batch axis merged into the channels, the last axis; repeated if there is none."""
    x = jnp.stack([x] * count, -2) if dim is None else jnp.moveaxis(x, dim, -2)
    return x.reshape(*x.shape[:-2], -1)


# ----- G: the gradient to the kernel ---------------------------------------------------------------------------------

depthwise_kernel_gradient_p = Primitive("depthwise_kernel_gradient")


def _correlate(
    x: Array, y: Array, *, lowering: Lowering, pads: Pads, strides: Strides, precision: Any, size: tuple[int, int]
) -> Array:
    if x.size == 0 or y.size == 0:
        return jnp.zeros((*size, x.shape[3]), x.dtype)
    with _precision(precision):
        return lowering.kernel_gradient(x, y, pads, strides, size)


@depthwise_kernel_gradient_p.def_abstract_eval
def _type_of_kernel(x: ShapedArray, y: ShapedArray, *, size: tuple[int, int], **_: Any) -> ShapedArray:
    """Spread over devices as x's channels; where x varies by device (`shard_map`), so does its gradient."""
    sharding = NamedSharding(x.sharding.mesh, P(None, None, x.sharding.spec[3]))
    return x.update(shape=(*size, x.shape[3]), weak_type=False, sharding=sharding)


def _correlate_to_image(kernel: Array, x: Any, y: Array, *, size: tuple[int, int], **params: Any) -> Array:
    return _gradient_to_image(y, x, kernel, **params)


def _correlate_to_output(kernel: Array, x: Array, y: Any, *, size: tuple[int, int], **params: Any) -> Array:
    return depthwise_conv_p.bind(x, kernel, **params)


def _batch_correlate(arguments: tuple[Array, Array], dims: tuple[Any, Any], **params: Any) -> tuple[Array, int]:
    count = next(a.shape[dim] for a, dim in zip(arguments, dims, strict=True) if dim is not None)
    x, y = (_as_channels(a, dim, count) for a, dim in zip(arguments, dims, strict=True))
    kernel = depthwise_kernel_gradient_p.bind(x, y, **params)
    return kernel.reshape(*kernel.shape[:-1], count, -1), 2


# ----- Lowering ------------------------------------------------------------------------------------------------------


def _register(
    primitive: Primitive, compute: Callable[..., Array], transposes: Any, batch: Any, static: tuple[str, ...], axes: str
) -> None:
    compiled = jax.jit(primitive.bind, static_argnames=static)

    @primitive.def_impl
    def evaluate(*arrays: Array, **params: Any) -> Array:
        with jax.disable_jit(False):  # a primitive is a program even there; else it would ask for itself without end
            return compiled(*arrays, **params)

    prim_requires_devices_during_lowering.add(primitive)  # as `custom_partitioning`, which is bound there
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        mlir.register_lowering(primitive, partial(_lower, compute, axes, platform), platform=platform)
    mlir.register_lowering(primitive, partial(_lower, compute, axes, "other platforms"))
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = batch


def _lower(compute: Callable[..., Array], axes: str, platform: str, context: Any, *arrays: Any, **params: Any) -> Any:
    module, (x, second) = context.module_context, context.avals_in
    exported = module.lowering_parameters.for_export
    size = params.get("size", second.shape[:2])
    method = choose(params.pop("method"), platform, x, size, params["strides"], exported=exported)
    lowering = LOWERINGS[method]
    compute = partial(compute, lowering=lowering, **params)
    by_xla = exported or (lowering.divided_by_xla and "size" not in params)  # a gradient to a kernel has a size
    if not by_xla and _spread_by_compiler(module.axis_context):
        compute = partial(_partitioned, compute, axes, f"{method} {params}")
    # Types that say where an array lies have done their work: from here on the compiler spreads the work.
    plain = {"avals_in": [ShapedArray(a.shape, a.dtype) for a in context.avals_in]}
    plain["avals_out"] = [ShapedArray(a.shape, a.dtype) for a in context.avals_out]
    with _without_mesh():
        return mlir.lower_fun(compute, multiple_results=False)(context.replace(**plain), *arrays)


def _spread_by_compiler(axis_context: Any) -> bool:
    """Whether the compiler divides the program among devices; in a `shard_map` over all axes of a mesh nothing is."""
    if hasattr(axis_context, "manual_axes"):
        return set(axis_context.manual_axes) != set(axis_context.mesh.axis_names)
    return getattr(axis_context, "num_devices", 1) > 1


def _without_mesh() -> AbstractContextManager[Any]:
    """Arrays as one device has them, of the kind that the user's mesh is of: it may not be here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def _partitioned(compute: Callable[..., Array], axes: str, what: str, *arrays: Array) -> Array:
    """`compute`, which each device does for its own images and channels.

    axes: those of the arrays and the result, as an einsum has them, b and c for batch and channels.
    """

    def local(mesh: Mesh, arguments: Any, result: Any) -> Any:
        """The mesh, what a device computes, and how results and arguments are spread."""
        if mesh.empty:  # shardings without names: every device computes everything
            mesh = Mesh(np.array(sorted(result.sharding.device_set, key=lambda device: device.id)), "all")
            spread = {}
        else:
            first, second = ((*a.sharding.spec, *(None,) * a.ndim)[: a.ndim] for a in arguments[:2])
            spread = {"b": first[0], "c": second[-1] if first[-1] is None else first[-1]}
            sizes = {"b": arguments[0].shape[0], "c": arguments[0].shape[-1]}
            spread = {axis: name for axis, name in spread.items() if sizes[axis] % _devices_along(mesh, name) == 0}
        shardings = [
            NamedSharding(mesh, P(*(spread.get(axis) for axis in names.split())))
            for names in axes.replace("->", ",").split(",")
        ]
        summed = spread.get("b") if "b" not in axes.split("->")[1] else None

        def compute_locally(*arrays: Array) -> Array:
            with _without_mesh():  # the compiler asks while the user's mesh may be set
                y = compute(*arrays[:-1])
                return y if summed is None else lax.psum(y, summed)

        return mesh, compute_locally, shardings[-1], tuple(shardings[:-1])

    whole = jax.jit(compute)  # keeps its constants to itself
    run = custom_partitioning(lambda *arrays: whole(*arrays[:-1]))
    run.def_partition(
        local,
        sharding_rule=axes,
        need_replication_factors=tuple(dict.fromkeys(axis for axis in axes if axis.isalpha() and axis not in "bc")),
        reduction_factors=() if "b" in axes.split("->")[1] else ("b",),
    )
    # Between hosts JAX's cache does not look at what is partitioned: two programs that differ there alone were one. A
    # number that nobody reads tells them apart.
    return run(*arrays, np.uint32(zlib.crc32(what.encode())))


def _devices_along(mesh: Mesh, name: str | tuple[str, ...] | None) -> int:
    names = name if isinstance(name, tuple) else () if name is None else (name,)
    return math.prod(mesh.shape[each] for each in names)


_register(
    depthwise_conv_p,
    _convolve,
    (_gradient_to_image, _gradient_to_kernel),
    _batch_convolve,
    ("pads", "strides", "method", "precision"),
    "b h w c, i j c, -> b m n c",
)
_register(
    depthwise_kernel_gradient_p,
    _correlate,
    (_correlate_to_image, _correlate_to_output),
    _batch_correlate,
    ("pads", "strides", "method", "precision", "size"),
    "b h w c, b m n c, -> i j c",
)

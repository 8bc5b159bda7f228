"""Every lowering of depthwise convolution that the platform has: exact, and how fast beside torch and the memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch_rivals

from dcls_jax import depthwise_conv
from dcls_jax.lowerings import times_matrices, toeplitz_matrices
from dcls_jax.methods import LOWERINGS, lowering_platform
from on_device.log import Log, Program, compiled, lines, seconds, untuned

KERNELS = (17, 7, 3)
SHAPES = ((56, 96, 1), (28, 192, 1), (14, 384, 1), (7, 768, 1))  # side, channels, stride: ConvNeXt-T's stages
STRIDED = {7: ((56, 128, 2), (28, 256, 2)), 3: ((112, 64, 2),)}  # FastViT's
EXACT = ((2, 56, 16, 17, 1), (2, 14, 32, 17, 1), (2, 7, 32, 17, 1), (2, 28, 32, 7, 2), (2, 15, 32, 3, 2))
DTYPES = ("float32", "bfloat16")
LARGEST, KEPT = 14, "kept"  # side of images with matrices, and what is timed of those made beforehand
COPIES = 4  # in one program, each of inputs of its own: longer than a call's own time


def run(log: Log, small: bool) -> None:
    _exact(log, EXACT[2:3] if small else EXACT)
    parts = [(kernel, gradient) for kernel in (KERNELS[:1] if small else KERNELS) for gradient in (False, True)]
    for i, (kernel, gradient) in enumerate(parts):
        shapes = ((7, 8, 1),) if small else SHAPES + STRIDED.get(kernel, ())
        part = Log(log.path, log.section, log.deadline - log.left() * (1 - 1 / (len(parts) - i)))
        _fast(part, 2 if small else 64, kernel, shapes, gradient)


def methods(dtype: str, stride: int) -> list[str]:
    """What the platform has, its own kernels first, XLA's own next."""
    x = jax.ShapeDtypeStruct((1, 1, 1, 1), dtype)
    found = [name for name, it in LOWERINGS.items() if it.supports(lowering_platform(), x, (stride, stride))]
    return sorted(found, key=lambda name: (LOWERINGS[name].portable and name != "pallas", name != "direct"))


def worth_timing(method: str, kernel: int, side: int) -> bool:
    """Whether it may be taken, or be a rival: others take the compiler's time from those that may."""
    return {"dft": False, "bands": False, "fft": kernel > 7, "shifts": kernel <= 7, "toeplitz": side <= LARGEST}.get(
        method, True
    )


def _step(method: str, kernel: int, stride: int, gradient: bool) -> Callable[..., Any]:
    def forward(x: jax.Array, k: jax.Array) -> jax.Array:
        return depthwise_conv(x, k, padding=kernel // 2, stride=stride, method=method)  # type: ignore[arg-type]

    def with_gradients(x: jax.Array, k: jax.Array) -> tuple[jax.Array, ...]:
        y, pull_back = jax.vjp(forward, x, k)
        return y, *pull_back(y)

    return with_gradients if gradient else forward


def _products(xs: Sequence[jax.Array], matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """What `freeze` makes of convolutions, their matrices made beforehand."""
    return [times_matrices(x, m, x.shape[1:3]) for x, m in zip(xs, matrices, strict=True)]


def _exact(log: Log, cases: tuple[tuple[int, ...], ...]) -> None:
    """The result and both gradients against XLA's own in float64 on the CPU."""

    def programs() -> Iterator[Program]:
        for batch, side, channels, kernel, stride in cases:
            random = np.random.default_rng(side)
            x = random.standard_normal((batch, side, side, channels), np.float32)
            k = random.standard_normal((kernel, kernel, channels), np.float32) / kernel
            for dtype in DTYPES:
                arrays = jnp.asarray(x, dtype), jnp.asarray(k, dtype)
                with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
                    wide = [jnp.asarray(np.asarray(array, np.float64)) for array in arrays]
                    expected = [np.asarray(it) for it in jax.jit(_step("direct", kernel, stride, True))(*wide)]
                for method in methods(dtype, stride):
                    about = {"shape": [batch, side, side, channels], "kernel": kernel, "stride": stride}
                    about |= {"dtype": dtype, "method": method}
                    with log.attempt("exact", **about), jax.default_matmul_precision("highest"):
                        program = Program.of(about, _step(method, kernel, stride, True), *arrays, options=untuned())
                        references[id(program)] = expected
                        yield program

    references: dict[int, list[np.ndarray]] = {}
    for program in compiled(log, programs(), spare=log.left() * 0.75):
        with log.attempt("exact", **program.fields):
            pairs = zip(program(), references[id(program)], strict=True)
            log.write("exact", **program.fields, errors=[relative(got, wanted) for got, wanted in pairs])


def relative(got: Any, wanted: np.ndarray) -> float:
    """||got - wanted|| / ||wanted||; the gradients here are those of a sum of squares."""
    return float(np.linalg.norm(np.asarray(got, np.float64) - wanted) / np.linalg.norm(wanted))


def _fast(log: Log, batch: int, kernel: int, shapes: tuple[tuple[int, ...], ...], gradient: bool) -> None:
    inputs = {}

    def programs() -> Iterator[Program]:
        for dtype in DTYPES:
            for side, channels, stride in shapes:
                keys = jax.random.split(jax.random.key(0))
                xs = jax.random.normal(keys[0], (COPIES, batch, side, side, channels), dtype)
                ks = (jax.random.normal(keys[1], (COPIES, kernel, kernel, channels)) / kernel).astype(dtype)
                about = {"kernel": kernel, "size": side, "channels": channels, "stride": stride, "dtype": dtype}
                inputs[tuple(about.values())] = [*xs], [*ks]
                for method in (it for it in methods(dtype, stride) if worth_timing(it, kernel, side)):
                    one = _step(method, kernel, stride, gradient)

                    def several(xs: Any, ks: Any, one: Any = one) -> Any:
                        return [one(x, k) for x, k in zip(xs, ks, strict=True)]

                    with log.attempt("depthwise", **about, method=method):
                        yield Program.of(about | {"method": method}, several, [*xs], [*ks])
                if side <= LARGEST and stride == 1 and not gradient:
                    pads = ((kernel // 2, kernel // 2),) * 2
                    matrices = [toeplitz_matrices(k, (side, side), pads, (1, 1)).astype(dtype) for k in ks]
                    with log.attempt("depthwise", **about, method=KEPT):
                        yield Program.of(about | {"method": KEPT}, _products, [*xs], matrices)

    ready = compiled(log, programs(), spare=log.left() / 2)
    for key, (xs, ks) in inputs.items():
        about = dict(zip(("kernel", "size", "channels", "stride", "dtype"), key, strict=True))
        if log.left() < 3:
            log.write("left out", **about, gradient=gradient)
            continue
        times = {}
        for program in ready:
            if tuple(program.fields.values())[:-1] == key:
                with log.attempt("depthwise", **program.fields):
                    times[program.fields["method"]] = seconds(program, turn=0.02)
        for layout in ("channels_last", "contiguous_format") if torch_rivals.there_is_torch() else ():
            with log.attempt("depthwise", **about, method=f"torch {layout}"):
                call = torch_rivals.depthwise(xs, ks, about["stride"], gradient, layout)
                times[f"torch {layout}"] = seconds(call, turn=0.02, wait_for=torch_rivals.wait_for)
        log.write(
            "depthwise",
            **about,
            batch=batch,
            gradient=gradient,
            floor_us=_floor(log, xs[0], ks[0], about["stride"], gradient),
            us={name: 1e6 * time / COPIES for name, time in times.items()},
        )


def _floor(log: Log, x: jax.Array, k: jax.Array, stride: int, gradient: bool) -> float | None:
    """Microseconds to read x and the kernel once and to write y, with gradients dy, dx and dk as well."""
    speed = next((line["gb_per_s"] for line in lines(log.path) if line.get("of") == "copy"), None)
    if speed is None:
        return None
    moved = x.nbytes * (1 + 1 / stride**2) + k.nbytes
    return float((2 if gradient else 1) * moved / speed / 1e3)

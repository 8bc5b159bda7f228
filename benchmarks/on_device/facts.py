"""What the device is, and how fast at its best."""

import importlib.metadata
import os
from contextlib import suppress

import jax
import jax.numpy as jnp

from dcls_jax.methods import lowering_platform
from on_device.log import Log, Program, compiled, seconds

PACKAGES = ("jax", "jaxlib", "flax", "torch", "timm")


def run(log: Log, small: bool) -> None:
    device = jax.devices()[0]
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    log.write(
        "device", lowers_for=lowering_platform(), kind=device.device_kind, cpu_cores=os.cpu_count(), versions=versions
    )
    count, side = (2**18, 128) if small else (2**29, 8192)
    numbers = jax.random.normal(jax.random.key(0), (count,))
    a, b = jax.random.normal(jax.random.key(1), (2, side, side))
    programs = [Program.of({"of": "copy"}, lambda x: x + 1, numbers)]
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision):
            programs.append(Program.of({"of": f"product in float32, {precision}"}, lambda a, b: a @ b, a, b))
    half = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    programs.append(Program.of({"of": "product in bfloat16"}, lambda a, b: a @ b, *half))
    for program in compiled(log, programs):
        time = seconds(program, turn=0.1)
        rate = (
            {"gb_per_s": 8 * count / time / 1e9}
            if program.fields["of"] == "copy"
            else {"tflop_per_s": 2 * side**3 / time / 1e12}
        )
        log.write("speed", **program.fields, **rate)

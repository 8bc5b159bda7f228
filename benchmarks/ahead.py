"""Compile what users run for a TPU or a GPU on a machine that has neither: whether, how long, and how much memory.

    pip install '.[aot]'; python benchmarks/ahead.py tpu|cuda [--models convnext_tiny,...] [--dtype bfloat16]

Full size at batch 64: the forward pass, Grad-CAM, the steps of ClickMe and of RISE's deletion and insertion, the
construction of all DCLS kernels, and a training step. For one chip, and with --mesh for a TPU's four (but for training,
where how a kernel's gradient is divided is asked of a client of the devices). Nothing runs.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import training
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dcls_jax import freeze, native
from dcls_jax.cam import grad_cam
from dcls_jax.compilation import OPTIONS
from dcls_jax.eval import clickme, faithfulness
from dcls_jax.eval.program import each_on_its_share
from dcls_jax.freezing import dcls_layers
from dcls_jax.models import Backbone, create_model, list_models
from dcls_jax.native import cuda
from dcls_jax.training import optimiser

TARGETS = "tpu", "cuda"
# What libtpu asks of the machine's surroundings, which are not a TPU's.
SURROUNDINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # other processes may compile too
}
H200 = Path(__file__).with_name("h200.txtpb")
COLUMNS = ("model", "step", "dtype", "compilation", "arguments", "temporary", "convolutions", "FFTs", "transposes")


class Step(NamedTuple):
    """A function of a model's state and of a batch, both shapes alone.

    by_image: whether each image's results are of it alone, so that chips need not speak with each other.
    """

    function: Callable[[Any, Any], Any]
    state: Any
    batch: Any
    by_image: bool = True


def mesh_of(target: str, chips: int = 1) -> Mesh:
    """Chips that are not there: of a TPU v5e, at most four, or an H200. What is traced from now on is for them."""
    mock.patch.object(jax, "default_backend", return_value={"cuda": "gpu"}.get(target, target)).start()
    if target == "tpu":
        os.environ.update(SURROUNDINGS)
        devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    else:
        # The library's own kernels as well, which NVRTC and the driver, not XLA, compile and load where they run.
        mock.patch.multiple(cuda, available=native.available, _compile_meanwhile=lambda definitions: None).start()
        options = {"platform": "cuda", "topology": "1x1x1", "target_config": H200.read_text()}
        devices = topologies.get_topology_desc("H200", **options).devices
    return Mesh(np.asarray(devices[:chips]), ("batch",))


def steps(name: str, dcls: bool, dtype: str, batch: int, side: int = 224, **config: Any) -> dict[str, Step]:
    """All of a model. Kernels are constructed once, but where training moves what they are made of."""
    model = nnx.eval_shape(lambda: create_model(name, dcls=dcls, dtype=jnp.dtype(dtype), **config))
    seen = batch, side, side, 3
    frozen = nnx.eval_shape(lambda: freeze(create_model(name, dcls=dcls, dtype=jnp.dtype(dtype), **config), seen))
    images, labels = _shape(seen), _shape((batch,), jnp.int32)
    graph, state = nnx.split(frozen)
    transform = replace(model.transform, resize=side, crop=side)

    def of(function: Callable[[Backbone, Any], Any], batch: Any) -> Step:
        return Step(lambda state, batch: function(nnx.merge(graph, state), batch), state, batch)

    found = {
        "forward": of(lambda model, x: model(x), images),
        "Grad-CAM": of(lambda model, both: grad_cam(model, *both), (images, labels)),
    }
    metrics = {
        "ClickMe": clickme.metric(model, clickme.PROTOCOLS, method="grad_cam", transform=transform),
        "deletion and insertion": faithfulness.metric(transform, method="grad_cam", presets=["rise"]),
    }
    for step, metric in metrics.items():
        found[step] = of(metric.step, jax.tree.map(lambda leaf: _shape((batch, *leaf.shape), leaf.dtype), metric.blank))
    if dcls:
        found["kernels"] = _kernels(model)
    return found | {"training": _training(model, images, labels)}


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _kernels(model: Backbone) -> Step:
    """Of all layers with DCLS, as training constructs them at each step."""
    graph, state = nnx.split(model)

    def construct(state: Any, _: Any) -> list[jax.Array]:
        model = nnx.merge(graph, state)
        at = dict(nnx.iter_modules(model))
        return [at[layer].construct(at[owner]) for layer, _, owner in dcls_layers(model)]

    return Step(construct, state, ())


def _training(model: Backbone, images: Any, labels: Any) -> Step:
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimise = optimiser(training.RATE, training.DECAY, training.FACTOR)
    step = training.step_of(graph, optimise)
    state = params, jax.eval_shape(optimise.init, params), rest
    return Step(lambda state, batch: step(state, *batch), state, (images, labels), by_image=False)


def compiled(step: Step, mesh: Mesh) -> tuple[Any, float]:
    """The program, for the batch shared out among the chips, and the seconds that compiling it took."""

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        there = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there), tree)

    function = each_on_its_share(step.function, mesh) if step.by_image and mesh.size > 1 else step.function
    arguments = placed(step.state, PartitionSpec()), placed(step.batch, PartitionSpec("batch"))
    lowered = jax.jit(function).lower(*arguments)
    start = time.perf_counter()
    return lowered.compile(OPTIONS.get(mesh.devices.flat[0].platform)), time.perf_counter() - start


def row(program: Any, seconds: float) -> list[str]:
    """What a table says of a program."""
    sizes, text = program.memory_analysis(), program.as_text()
    counts = (
        len(re.findall(pattern, text))
        for pattern in (r" convolution\(|__cudnn\$conv\w*", r" fft\(|cufft", r" transpose\(")
    )
    mebibytes = sizes.argument_size_in_bytes / 2**20, sizes.temp_size_in_bytes / 2**20
    return [f"{seconds:.1f} s", *(f"{size:.0f} MiB" for size in mebibytes), *map(str, counts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--models", default=",".join(list_models()))
    parser.add_argument("--steps", help="some of them, by name and with commas")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--mesh", action="store_true", help="for the four chips of a TPU")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # of what is here
    mesh = mesh_of(options.target, 4 if options.mesh else 1)
    print(f"{mesh.size} x {mesh.devices.flat[0].device_kind}, batch {options.batch}, jax {jax.__version__}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in options.models.split(","):
        for dcls in (True, False):
            for step, it in steps(name, dcls, options.dtype, options.batch).items():
                if (options.steps and step not in options.steps.split(",")) or (mesh.size > 1 and not it.by_image):
                    continue
                try:
                    cells = row(*compiled(it, mesh))
                except Exception as error:
                    cells = [f"{type(error).__name__}: {error}".splitlines()[0][:120]]
                print(f"| {' | '.join([name + ' dcls' * dcls, step, options.dtype, *cells])} |", flush=True)


if __name__ == "__main__":
    main()

"""What users run compiles for a TPU and a GPU that need not be there: small models, every step of ahead.py."""

import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax._src import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from dcls_jax import Conv, depthwise_conv, freeze
from tests.models.small import MODELS, SMALL

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ahead

pytestmark = [pytest.mark.aot, pytest.mark.as_for_users]


@pytest.fixture(autouse=True)
def without_kept_programs(monkeypatch):
    """Those of devices that are not there can be written, but not read."""
    monkeypatch.setattr(compilation_cache, "is_cache_used", lambda backend: False)


def check(target: str, name: str, dtype: str, chips: int = 1) -> None:
    mesh = ahead.mesh_of(target, chips)
    config = {key: value for key, value in (SMALL | MODELS[name]).items() if key != "dcls"}
    for step, it in ahead.steps(name, SMALL["dcls"], dtype, 4, side=64, **config).items():
        if chips > 1 and not it.by_image:
            continue  # how a kernel's gradient is divided, in Python, is asked of a client of the devices
        program, _ = ahead.compiled(it, mesh)
        sizes = program.memory_analysis()
        assert 0 < sizes.argument_size_in_bytes < 2**26, step
        assert sizes.temp_size_in_bytes < 2**27, step
        if target == "cuda" and name != "resnet50":  # whose convolutions are not depthwise
            assert ('custom_call_target="dcls_cuda"' in program.as_text()) == (step != "kernels"), step


@pytest.mark.parametrize("target", ahead.TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_every_step_of_every_family_compiles(target, name, dtype):
    check(target, name, dtype)


@pytest.mark.parametrize("name", MODELS)
def test_for_four_chips_that_share_a_batch(name):
    check("tpu", name, "bfloat16", chips=4)


def test_a_whole_fastvit_does_not_kill_the_compiler():
    """Which died of a segmentation fault in its second arrangement of on-chip memory."""
    step = ahead.steps("fastvit_sa24", True, "bfloat16", 64)["deletion and insertion"]
    ahead.compiled(step, ahead.mesh_of("tpu"))


@pytest.mark.parametrize(
    ("target", "method", "call"), [("tpu", "pallas", "tpu_custom_call"), ("cuda", "triton", "__gpu$xla.gpu.triton")]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("side", "channels", "kernel", "stride"),
    [(56, 96, 17, 1), (28, 192, 7, 1), (14, 384, 17, 1), (7, 768, 17, 1), (112, 64, 3, 2), (56, 128, 7, 2)],
)
def test_convolutions_in_pallas_and_their_gradients_compile_in_seconds(
    side, channels, kernel, stride, dtype, target, method, call
):
    def step(x, cells):
        def convolve(x, cells):
            return depthwise_conv(x, cells, padding=kernel // 2, stride=stride, method=method)

        y, pullback = jax.vjp(convolve, x, cells)
        return y, *pullback(y)

    there = NamedSharding(ahead.mesh_of(target), PartitionSpec())
    shapes = (8, side, side, channels), (kernel, kernel, channels)
    program = jax.jit(step).lower(*(jax.ShapeDtypeStruct(shape, dtype, sharding=there) for shape in shapes)).compile()
    assert program.as_text().count(f'custom_call_target="{call}"') == 3
    assert program.memory_analysis().temp_size_in_bytes < 2**28


def compiled_layer(target, build, images):
    """The program of a layer of bfloat16 images, for one device."""
    there = NamedSharding(ahead.mesh_of(target), PartitionSpec())
    graph, state = nnx.split(nnx.eval_shape(build))
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
        (state, jax.ShapeDtypeStruct(images, jnp.bfloat16)),
    )
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(*arguments).compile()


def convolution(channels, **options):
    return Conv(
        channels, channels, (17, 17), padding=8, groups=channels, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **options
    )


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_a_bias_is_added_where_the_normalisation_reads_the_image(target):
    """No array of the image's size is written for it."""

    def written(bias):
        def block():
            norm = nnx.LayerNorm(96, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
            mlp = nnx.Linear(96, 384, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
            return nnx.Sequential(convolution(96, bias=bias), norm, mlp)

        program = compiled_layer(target, block, (8, 28, 28, 96)).as_text()
        made = re.findall(r"= bf16\[([\d,]+)\]\S* (?!bitcast|parameter)\S+\(", program[program.index("ENTRY") :])
        return [shape for shape in made if math.prod(map(int, shape.split(","))) >= 8 * 28 * 28 * 96]

    assert written(bias=True) == written(bias=False)
    assert written(bias=True)


@pytest.mark.parametrize(("target", "kept"), [("tpu", True), ("cuda", False)])
def test_a_tpu_multiplies_small_images_by_kept_matrices(target, kept):
    images = (8, 14, 14, 384)
    program = compiled_layer(target, lambda: freeze(convolution(384), images), images)
    assert (program.memory_analysis().argument_size_in_bytes > 384 * 196 * 196 * 2) == kept
    assert ("custom_call" in program.as_text()) != kept


def test_a_shard_map_that_knows_what_varies_has_pallas_too():
    mesh = ahead.mesh_of("tpu", 4)

    def step(x, cells):
        y, pullback = jax.vjp(lambda x, cells: depthwise_conv(x, cells, padding=8), x, cells)
        return y, *pullback(y)

    by_batch, alike = PartitionSpec("batch"), PartitionSpec()
    shared = jax.shard_map(step, mesh=mesh, in_specs=(by_batch, alike), out_specs=(by_batch, by_batch, alike))
    arguments = (
        jax.ShapeDtypeStruct(shape, "bfloat16", sharding=NamedSharding(mesh, spec))
        for shape, spec in (((32, 14, 14, 128), by_batch), ((17, 17, 128), alike))
    )
    assert jax.jit(shared).lower(*arguments).compile().as_text().count("tpu_custom_call") == 3

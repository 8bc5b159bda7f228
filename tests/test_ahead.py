"""What users run compiles for a TPU and a GPU that need not be there: small models, every step of ahead.py."""

import sys
from pathlib import Path

import pytest
from jax._src import compilation_cache

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


@pytest.mark.parametrize("target", ahead.TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_every_step_of_every_family_compiles(target, name):
    check(target, name, "bfloat16")


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_in_float32_too(target):
    check(target, "caformer_s18", "float32")


def test_for_four_chips_that_share_a_batch():
    check("tpu", "convnext_tiny", "bfloat16", chips=4)

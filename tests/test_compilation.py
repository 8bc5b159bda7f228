"""The compiler's options."""

import jax
import pytest

from dcls_jax import compilation


@pytest.mark.parametrize("platform", ["tpu", "METAL"])
def test_a_compiler_that_does_not_know_them_gets_none(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert compilation.compiler_options.__wrapped__() == {}


def test_a_cpu_gets_its_own():
    assert compilation.compiler_options() == compilation.OPTIONS["cpu"]

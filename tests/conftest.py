"""Settings and helpers of all tests."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

# Parity is a matter of the formula, not of the hardware's short cuts.
jax.config.update("jax_default_matmul_precision", "highest")

DATA = Path(__file__).parent / "data"


@pytest.fixture
def data() -> Path:
    """The folder of committed test data."""
    return DATA


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Largest difference, relative to the largest value expected."""

    def check(actual: object, expected: object, relative: float = 1e-4) -> None:
        a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert a.shape == b.shape
        difference = np.abs(a - b).max() / np.abs(b).max()
        assert difference <= relative, f"differs by {difference:.2e} of the largest value"

    return check

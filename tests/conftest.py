"""Settings and helpers of all tests."""

import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs are compiled once for all workers and runs, and for the programs that tests start; `--cache-clear` forgets.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "d" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src import compiler

from dcls_jax import native

# Parity is a matter of the formula, not of the hardware's short cuts.
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_num_cpu_devices", 8)  # of this process; what shards is tested on them

DATA = Path(__file__).parent / "data"


def slow(*values: Any) -> Any:
    """A case that `make parity` runs, and `make test` leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


def long(*values: Any) -> Any:
    """A case that `make long` runs."""
    return pytest.param(*values, marks=pytest.mark.long)


# Options with which programs are compiled in a fifth of the time, to run slower. XLA's own passes, fusion among them,
# are the same; fused loops are written by its older generator, and LLVM does not optimise, all in one piece.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
_options: dict[str, object] = {}  # for the test that runs


@cache
def _quick_options() -> dict[str, object]:
    """Those that this jaxlib knows."""

    def known(option: str) -> bool:
        try:
            jax.jit(lambda x: x, compiler_options={option: _QUICK[option]}).lower(0).compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {option: value for option, value in _QUICK.items() if known(option)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-library", type=Path, help="the native kernels to test, in place of the installed ones")


def pytest_configure(config: pytest.Config) -> None:
    native.LIBRARY = config.getoption("--native-library") or native.LIBRARY
    # A shell starts what runs in its background deaf to Ctrl-C, and with it every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Workers must agree on names, and bytes may hold what varies from run to run, as gzip's do the time."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_finish() -> None:
    """What is imported lives to the end: garbage is not looked for in it, nor as often as tracing makes objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compile quickly all but the tests against PyTorch, or against another process.

    With DCLS_JAX_TEST_OPTIMISED=1 those marked `optimised`, which compare with recorded numbers, are compiled as for
    users too; `make parity` does so.
    """
    as_for_users = ["as_for_users", "parity"] + ["optimised"] * ("DCLS_JAX_TEST_OPTIMISED" in os.environ)
    _options.clear()
    if not any(item.get_closest_marker(name) for name in as_for_users):
        _options.update(_quick_options())


# JAX takes options for one `jax.jit` or, in XLA_FLAGS, for a whole process; here they are a test's.
_get_compile_options = compiler.get_compile_options


def _with_options(*arguments: Any, env_options_overrides: dict[str, Any] | None = None, **others: Any) -> Any:
    return _get_compile_options(*arguments, env_options_overrides=_options | (env_options_overrides or {}), **others)


compiler.get_compile_options = _with_options


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
        difference, largest = np.abs(a - b).max(), np.abs(b).max()
        assert difference <= relative * largest, f"differs by {difference:.2e}, and the largest value is {largest:.2e}"

    return check


@pytest.fixture
def strict():
    """Nothing broadcasts to a higher rank, and no dtype is promoted, but where it is said."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file."""
    with np.load(path) as file:
        return dict(file)


# Random numbers come from NumPy, in their dtype: JAX compiles a program for each shape, to draw and to convert.


def array(numbers: Any, dtype: Any) -> jax.Array:
    """An array on the device, without a program."""
    return jnp.asarray(np.asarray(numbers).astype(dtype), dtype)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal numbers."""
    return array(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def initialiser(seed: int) -> Callable[..., jax.Array]:
    """LeCun's normal initialiser, for `kernel_init` and `bias_init`; each call draws on."""
    rng = np.random.default_rng(seed)
    return lambda key, shape, dtype, *_: array(rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), dtype)


def random_model(build: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """The model that `build` makes, with all its parameters and statistics random, and none of its initialisers run."""
    rng, keys = np.random.default_rng(seed), itertools.count(seed)

    def value(path: tuple[str | int, ...], leaf: nnx.Variable) -> jax.Array:
        if isinstance(leaf, nnx.RngKey):
            return jax.random.key(next(keys))
        if isinstance(leaf, nnx.RngCount):
            return array(0, leaf.dtype)
        if leaf.ndim < 2 and path[-1] not in ("bias", "mean"):
            return array(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)  # scales and variances
        return array(rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    graph, state = nnx.split(nnx.eval_shape(build))
    leaves = [(path, leaf.replace(value(path, leaf))) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))

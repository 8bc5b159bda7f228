"""What an import costs: a stranger who asks for help, or for one function, does not wait for all of JAX."""

import os
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import dcls_jax
import dcls_jax.cam
import dcls_jax.eval
import dcls_jax.models
import dcls_jax.training

HEAVY = {"jax", "flax", "grain", "google.protobuf", "tensorflow_datasets", "orbax", "pooch", "matplotlib", "torch"}


def modules_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize(
    ("statement", "needs"),
    [
        ("import dcls_jax", set()),
        ("import dcls_jax.eval.cli", set()),
        ("from dcls_jax import depthwise_conv", {"jax"}),
        ("from dcls_jax.eval import spearman, RecordError", {"jax"}),
    ],
)
def test_imports_bring_what_they_need_and_no_more(statement: str, needs: set[str]) -> None:
    assert modules_after(statement) == needs


def test_help_needs_no_jax() -> None:
    program = """
import sys
from dcls_jax.eval.cli import main
sys.argv = ["dcls-jax", "eval", "clickme", "--help"]
try:
    main()
finally:
    assert "jax" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "package",
    [dcls_jax, dcls_jax.cam, dcls_jax.eval, dcls_jax.models, dcls_jax.training],
    ids=lambda package: package.__name__,
)
def test_no_public_name_and_module_hide_each_other(package) -> None:
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    public = getattr(package, "__all__", [name for name in vars(package) if not name.startswith("_")])
    for name in public:
        assert name in dir(package)
        assert (name in modules) == isinstance(getattr(package, name), ModuleType)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_or_read_is_no_news(tmp_path) -> None:
    program = """
from dcls_jax.compilation import keep_compilations
keep_compilations()
import jax
jax.jit(lambda x: x + 1)(1.0)
"""

    def run(cache) -> str:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment).stderr

    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "folder") == ""
    assert run(tmp_path / "cache") == ""
    entries = list((tmp_path / "cache").iterdir())
    assert entries
    for entry in entries:  # as a kill leaves it
        entry.write_bytes(entry.read_bytes()[:100])
    assert run(tmp_path / "cache") == ""

"""What is built and shipped, by `make package`: for whom a wheel is, and that the source distribution is all of it."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dcls_jax

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = {".gitignore"}  # and the top-level folders, which are shipped under the package's name
LINKED = ("cam/", "eval/", "models/")


def build(source: Path, out: Path, kind: str, **environment: str) -> Path:
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "build", "--quiet", f"--{kind}", "--out-dir", out, source]
    subprocess.run(command, env=os.environ | environment, check=True)
    return next(path for path in out.iterdir() if path.suffix in (".whl", ".gz"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files alone, as a fresh clone has them."""
    folder = tmp_path_factory.mktemp("clone") / "dcls_jax"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def source(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


def test_the_source_distribution_is_the_checkout(checkout: Path, source: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.split()
    with tarfile.open(source) as archive:
        shipped = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = {f"dcls_jax/{name}" if name.startswith(LINKED) else name for name in tracked}
    assert expected - shipped == NOT_SHIPPED


def test_a_wheel_with_kernels_is_for_every_python_on_its_platform(wheel: Path) -> None:
    assert wheel.name.startswith(f"dcls_jax-{dcls_jax.__version__}-py3-none-")
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "dcls_jax/native/_kernels.so" in names


def test_a_wheel_without_kernels_is_for_every_platform(checkout: Path, tmp_path: Path) -> None:
    wheel = build(checkout, tmp_path, "wheel", CC="no-compiler", CXX="no-compiler")
    assert wheel.name == f"dcls_jax-{dcls_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        information = f"dcls_jax-{dcls_jax.__version__}.dist-info/WHEEL"
        assert "Root-Is-Purelib: true" in archive.read(information).decode()


def test_everything_is_installed_under_the_packages_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"dcls_jax-{dcls_jax.__version__}.dist-info/METADATA").decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dcls_jax"}
    for file in (
        "convert_weights.py",
        "fastest.json",
        "native/depthwise.cu",
        "models/descriptions.json",
        "models/imagenet_classes.txt",
        "eval/report/page.css",
        "eval/report/page.html",
        "eval/report/page.js",
        "eval/sample/val-0.tfrecords",
        "py.typed",
    ):
        assert f"dcls_jax/{file}" in names
    assert "Classifier: Typing :: Typed" in metadata
    _, description = metadata.split("\n\n", 1)
    assert description.startswith("# dcls_jax\n")
    # A relative address leads nowhere where the description is shown, and its picture would be a broken one.
    addresses = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"|^\[.*\]: *(\S+)", description, re.M)
    assert addresses
    assert not [address for each in addresses for address in each if not re.match(r"https://|#|$", address)]


def test_a_wheel_holds_every_module(checkout: Path, wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.split()
    modules = {f"dcls_jax/{name}" for name in tracked if name.startswith(LINKED)}
    modules |= {name for name in tracked if name.startswith("dcls_jax/")}
    assert modules <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_is_used_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    site = tmp_path / "site"
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True)
    program = f"""
import dcls_jax.convert_weights
from dcls_jax import native
from dcls_jax.eval import demo
assert demo.__file__.startswith({str(site)!r}), demo.__file__
assert len(demo.sample_models()) == 2
assert native.available()
"""
    environment = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)

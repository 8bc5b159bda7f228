"""What pyproject.toml cannot say: the optional C++ kernels, and the README as a package index shows it."""

import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jaxlib
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("dcls_jax/native")


class BuildKernels(build_ext):
    """One file for every Python: the library holds no Python, it is opened by ctypes. Sources compile side by side."""

    def build_extensions(self) -> None:
        compile_in_turn = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor() as pool:
                objects = pool.map(lambda source: compile_in_turn([source], **options), sources)
                return [file for files in objects for file in files]

        self.compiler.compile = compile_all
        super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"


class Wheel(bdist_wheel):
    """A wheel for any Python, and for any platform too where no compiler was found and the kernels were left out."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.get_finalized_command("build").build_lib).rglob("_kernels.so"))
        self.root_is_pure = not built
        return "py3", "none", super().get_tag()[2] if built else "any"


def description() -> str:
    """The README with absolute addresses, as files beside it are not shown: at the repository, if it is published."""
    repository = tomllib.loads(Path("pyproject.toml").read_text())["project"]["urls"].get("Repository")
    readme = Path("README.md").read_text()
    relative = r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]*)\)"
    if repository is None:
        return re.sub(relative, lambda link: "" if link[1] else link[2], readme)
    return re.sub(relative, rf"\1[\2]({repository}/raw/HEAD/\3)", readme)


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "dcls_jax.native._kernels",
            sources=[str(NATIVE / name) for name in ("depthwise.cc", "cuda.cc", "ranks.cc", "version.cc")],
            depends=[str(NATIVE / "depthwise_kernels.inc"), str(NATIVE / "parallel.h")],
            include_dirs=[str(Path(jaxlib.__file__).parent / "include")],
            extra_compile_args=["-O3", "-std=c++17", "-Wno-return-type", "-g0"],
            language="c++",
            optional=True,
        )
    ],
)

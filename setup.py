"""The optional C++ kernels, left out where no compiler is found; everything else is in pyproject.toml."""

from pathlib import Path

import jaxlib
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("dcls_jax/native")


class BuildKernels(build_ext):
    """One file for every Python: the library holds no Python, it is opened by ctypes."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"


class Wheel(bdist_wheel):
    """A wheel for any Python, and for any platform too where the kernels were not built."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.get_finalized_command("build").build_lib).rglob("_kernels.so"))
        self.root_is_pure = not built
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "dcls_jax.native._kernels",
            sources=[str(NATIVE / name) for name in ("depthwise.cc", "ranks.cc", "version.cc")],
            depends=[str(NATIVE / "depthwise_kernels.inc"), str(NATIVE / "parallel.h")],
            include_dirs=[str(Path(jaxlib.__file__).parent / "include")],
            extra_compile_args=["-O3", "-std=c++17", "-Wno-return-type", "-g0"],
            language="c++",
            optional=True,
        )
    ],
)

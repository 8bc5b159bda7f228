"""The optional C++ kernels, left out where no compiler is found; everything else is in pyproject.toml."""

from pathlib import Path

import jaxlib
from setuptools import Extension, setup

NATIVE = Path("dcls_jax/native")

setup(
    ext_modules=[
        Extension(
            "dcls_jax.native._kernels",
            sources=[str(NATIVE / "depthwise.cc"), str(NATIVE / "ranks.cc")],
            depends=[str(NATIVE / "depthwise_kernels.inc"), str(NATIVE / "parallel.h")],
            include_dirs=[str(Path(jaxlib.__file__).parent / "include")],
            extra_compile_args=["-O3", "-std=c++17", "-Wno-return-type"],
            language="c++",
            optional=True,
        )
    ]
)

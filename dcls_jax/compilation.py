"""How programs are compiled: with the options that suit these models, and kept from one run to the next."""

import os
import warnings
from functools import cache

import jax

OPTIONS: dict[str, dict[str, str | bool]] = {
    # XLA hands convolutions and reductions on a CPU to YNNPACK: its convolutions take twice the time of those it
    # replaces, and what a reduction reads has to be written out first. A ConvNeXt-T runs 1.3 times faster without.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    # libtpu 0.0.52 dies over deletion and insertion of FastViT where it arranges on-chip memory a second time. What it
    # compiles either way is the same, by its own count of cycles.
    "tpu": {"xla_msa_max_repacks": "0"},
}


@cache
def compiler_options() -> dict[str, str | bool]:
    """Options that suit these models, for `jax.jit(..., compiler_options=)` or `lowered.compile()`.

    On a CPU they make them faster, on a TPU they keep its compiler alive. Empty where there are none to be set: on
    other platforms, or in a compiler that does not know them. Numbers stay within float32 rounding: the same operations
    are fused otherwise.
    """
    options = OPTIONS.get(jax.default_backend())
    if options is None:
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def keep_compilations() -> None:
    """Keep compiled programs in the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says ("": nowhere).

    What cannot be written there, or read, is compiled again without a word.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import pooch

        jax.config.update("jax_compilation_cache_dir", str(pooch.os_cache("dcls_jax") / "compiled"))
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    # The small programs too: there are a hundred of them before the first result.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

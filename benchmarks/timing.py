"""Side-by-side timing on a noisy machine: candidates take turns, and the minimum of each counts."""

import time
from collections.abc import Callable, Mapping

import jax


def minima(candidates: Mapping[str, Callable[[], object]], *, rounds: int = 5, pause: float = 0.3) -> dict[str, float]:
    """Seconds of one call of each candidate, the least of two calls in each of `rounds` rounds, after one to compile.

    Before each turn there is a pause, in seconds: OpenMP's threads spin on for a while, in the way of who comes next.
    """
    times = {name: float("inf") for name in candidates}
    for call in candidates.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in candidates.items():
            time.sleep(pause)
            for _ in range(2):
                start = time.perf_counter()
                jax.block_until_ready(call())
                times[name] = min(times[name], time.perf_counter() - start)
    return times


def machine() -> str:
    """One line for the head of a table."""
    import os
    import platform

    device = jax.devices()[0]
    kind = f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
    return f"{kind}, jax {jax.__version__}, python {platform.python_version()}"

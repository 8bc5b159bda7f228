"""Side-by-side timing on a noisy machine: candidates take turns, and the minimum of each counts."""

import time
from collections.abc import Callable, Mapping

import jax

TURN = 0.1  # seconds


def minima(candidates: Mapping[str, Callable[[], object]], *, rounds: int = 5, pause: float = 0.3) -> dict[str, float]:
    """Seconds of one call of each, the least in `rounds` turns of TURN seconds or two calls, after one to compile.

    Before each turn there is a pause, in seconds: OpenMP's threads spin on for a while, in the way of who comes next.
    """
    times = {name: float("inf") for name in candidates}
    for call in candidates.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in candidates.items():
            time.sleep(pause)
            turn = []
            while len(turn) < 2 or sum(turn) < TURN:
                start = time.perf_counter()
                jax.block_until_ready(call())
                turn.append(time.perf_counter() - start)
            times[name] = min(times[name], *turn)
    return times


def machine() -> str:
    """One line for the head of a table."""
    import os
    import platform

    device = jax.devices()[0]
    kind = f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
    return f"{kind}, jax {jax.__version__}, python {platform.python_version()}"

"""Spearman's correlation of 32 pairs of 224 x 224 maps: SciPy and the device, side by side.

Run `python benchmarks/spearman.py`; each time is the smallest of the repeats, in milliseconds.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from dcls_jax.eval.rank import spearman

PAIRS, SIDE, REPEATS = 32, 224, 7


def maps(seed: int, cells: int) -> np.ndarray:
    """Random maps (32, 224, 224), enlarged from `cells` per side as heatmaps are."""
    coarse = np.random.default_rng(seed).standard_normal((PAIRS, cells, cells)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (PAIRS, SIDE, SIDE), "bilinear"))


def milliseconds(function: Callable[[], object]) -> float:
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    human = maps(0, 64)
    coarse = maps(1, 7)
    noise = np.random.default_rng(2).standard_normal(human.shape).astype(np.float32)
    kinds = {"Grad-CAM, half of it 0": np.maximum(coarse, 0), "floor 0.3": np.maximum(coarse, 0.3), "noise": noise}
    on_device = jax.jit(jax.vmap(spearman))
    print(f"{jax.devices()[0].device_kind}, {PAIRS} pairs of {SIDE} x {SIDE} maps, ms")
    print(f"{'maps':24}{'scipy':>10}{'dcls_jax':>10}{'ratio':>8}{'difference':>12}")
    for kind, model in kinds.items():
        pairs = list(zip(model.reshape(PAIRS, -1), human.reshape(PAIRS, -1), strict=True))
        a, b = jnp.asarray(model), jnp.asarray(human)
        theirs = milliseconds(lambda pairs=pairs: [stats.spearmanr(x, y).statistic for x, y in pairs])
        ours = milliseconds(lambda a=a, b=b: on_device(a, b))
        difference = np.abs(np.asarray(on_device(a, b)) - [stats.spearmanr(x, y).statistic for x, y in pairs]).max()
        print(f"{kind:24}{theirs:10.0f}{ours:10.0f}{theirs / ours:8.1f}{difference:12.1e}")


if __name__ == "__main__":
    main()

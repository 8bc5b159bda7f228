"""Spearman's correlation of 32 pairs of 224 x 224 maps: SciPy and the device, in turns.

Run `python benchmarks/spearman.py`; times in milliseconds, the smallest of all turns.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from timing import machine, minima

from dcls_jax.eval.rank import spearman

PAIRS, SIDE = 32, 224


def maps(seed: int, cells: int) -> np.ndarray:
    """Random maps (32, 224, 224), enlarged from `cells` per side as heatmaps are."""
    coarse = np.random.default_rng(seed).standard_normal((PAIRS, cells, cells)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (PAIRS, SIDE, SIDE), "bilinear"))


def scipys(model: np.ndarray, human: np.ndarray) -> list[float]:
    return [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(model, human, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    human = maps(0, 64)
    coarse = maps(1, 7)
    noise = np.random.default_rng(2).standard_normal(human.shape).astype(np.float32)
    kinds = {
        "Grad-CAM, half of it 0": np.maximum(coarse, 0),
        "floor 0.3": np.maximum(coarse, 0.3),
        "noise": noise,
        "many magnitudes": np.exp(10 * noise),
    }
    on_device = jax.jit(jax.vmap(spearman))
    print(f"{machine()}; {PAIRS} pairs of {SIDE} x {SIDE} maps, ms")
    print(f"{'maps':24}{'scipy':>10}{'dcls_jax':>10}{'ratio':>8}{'difference':>12}")
    for kind, model in kinds.items():
        a, b = jnp.asarray(model), jnp.asarray(human)
        times = minima(
            {
                "scipy": lambda model=model: scipys(model, human),
                "dcls_jax": lambda a=a, b=b: on_device(a, b),
            },
            rounds=rounds,
        )
        theirs, ours = (1000 * times[name] for name in ("scipy", "dcls_jax"))
        difference = np.abs(np.asarray(on_device(a, b)) - scipys(model, human)).max()
        print(f"{kind:24}{theirs:10.0f}{ours:10.1f}{theirs / ours:8.1f}{difference:12.1e}")


if __name__ == "__main__":
    main()

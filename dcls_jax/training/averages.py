"""Averages of parameters over steps."""

from typing import Any

import jax
from jax.typing import ArrayLike


def ema(average: Any, params: Any, decay: ArrayLike) -> Any:
    """The exponential moving average of parameters: decay * average + (1 - decay) * params, for each leaf once.

    average, params: trees of one structure; the result has the dtypes of `average`, which should be float32, as with a
    decay of 0.9999 bfloat16 would never move. Statistics of batch normalisation belong to what is averaged.
    timm's ModelEma goes over names instead: positions that n layers share are moved n times a step there, which is a
    decay of decay**n for them alone (timm/utils/model_ema.py).
    """
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), average, params)

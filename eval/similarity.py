"""How alike two maps are: ranks, structural similarity (SSIM), and histograms of oriented gradients (HOG)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from dcls_jax.cam.maps import normalise, unit_range
from dcls_jax.cam.masks import chosen_convention
from dcls_jax.cam.programs import is_traced, run
from dcls_jax.eval.rank import spearman

_SIGMA, _RADIUS = 1.5, 5  # of SSIM's Gaussian window
_CELL, _BLOCK, _ORIENTATIONS = 16, 3, 9  # of HOG: pixels, cells, and bins of half a turn
_CLIP, _EPSILON = 0.2, 1e-5  # of the norm of its blocks, L2-Hys


@dataclass(frozen=True)
class SimilarityPreset:
    """How structures are compared.

    unit_range: maps get the range [0, 1] before, else they are taken as they are. axes: along which SSIM's windows lie,
    (0, 1), or (0,) for columns by themselves. data_range: what SSIM takes for the range of values, the pair's unless
    given. predicted: the class that each model predicts is explained, else the label. Each has its source in `source`.
    """

    name: str
    source: str
    unit_range: bool = False
    axes: tuple[int, ...] = (0, 1)
    data_range: float | None = None
    predicted: bool = False


# The notebook's `multichannel=True` takes the columns of a map for channels, and its scikit-image, 0.15, the range of
# floats to be from -1 to 1.
SIMILARITY_PRESETS = {
    preset.name: preset
    for preset in (
        SimilarityPreset(name="standard", source="scikit-image's structural_similarity with gaussian_weights, and hog"),
        SimilarityPreset(
            name="adebayo",
            source="github.com/adebayoj/sanity_checks_saliency at 3e24048, inceptionv3_cascading_randomization.ipynb",
            unit_range=True,
            axes=(0,),
            data_range=2.0,
            predicted=True,
        ),
    )
}


def similarity(a: ArrayLike, b: ArrayLike, *, preset: str | SimilarityPreset = "standard") -> dict[str, Array]:
    """How alike two maps (H, W) are, from -1 to 1: "spearman", "spearman_abs", "ssim" and "hog", float32 scalars.

    spearman: of the values; spearman_abs: of their magnitudes; ssim: see `ssim`; hog: Spearman's correlation of `hog`.
    Correlations of a constant map are NaN. preset: a name in SIMILARITY_PRESETS. Jit and vmap at will. Raises
    ValueError for maps of two shapes, or of less than 48 x 48 pixels: enlarge them first; for values that are not
    finite, which give NaN where they cannot be seen; and for an unknown preset. Adebayo et al. 2018, arXiv 1810.03292,
    section 4.
    """
    rule = chosen_convention(preset, SIMILARITY_PRESETS, "preset")
    return run(_similarity, *_checked(a, b, least=_CELL * _BLOCK), rule=rule)


def _similarity(a: Array, b: Array, *, rule: SimilarityPreset) -> dict[str, Array]:
    x, y = (normalise(a), normalise(b)) if rule.unit_range else (a, b)
    return {
        "spearman": spearman(a, b),
        "spearman_abs": spearman(jnp.abs(a), jnp.abs(b)),
        "ssim": _ssim(x, y, axes=rule.axes, data_range=rule.data_range),
        "hog": spearman(_hog(x), _hog(y)),
    }


def ssim(a: ArrayLike, b: ArrayLike, *, axes: Sequence[int] = (0, 1), data_range: float | None = None) -> Array:
    """Mean structural similarity of two maps (H, W), in Gaussian windows of 11 pixels with a sigma of 1.5: scalar.

    axes: along which the windows lie; (0,) compares columns by themselves. data_range: of values, the pair's own unless
    given. Two maps of one constant have none, and give NaN. Raises ValueError as `similarity`, for less than 11 x 11
    pixels, and other axes. Wang et al. 2004; scikit-image's structural_similarity with gaussian_weights, to rounding.
    """
    if tuple(axes) not in ((0,), (1,), (0, 1)):
        raise ValueError(f"axes (={axes}) must be (0, 1), (0,) or (1,)")
    return run(_ssim, *_checked(a, b, least=2 * _RADIUS + 1), axes=tuple(axes), data_range=data_range)


def _ssim(a: Array, b: Array, *, axes: tuple[int, ...], data_range: float | None) -> Array:
    pair_range = jnp.maximum(a.max(), b.max()) - jnp.minimum(a.min(), b.min())
    scale = pair_range if data_range is None else data_range
    # Less their means, so that in float32 a variance is no difference of large numbers.
    (middle_a, a), (middle_b, b) = ((m.mean() / scale, (m - m.mean()) / scale) for m in (a, b))
    moments = jnp.stack([a, b, a * a + b * b, a * b])
    mean_a, mean_b, squares, product = _windowed(moments, axes)
    taps = (2 * _RADIUS + 1) ** len(axes)
    sample = taps / (taps - 1)
    variances, covariance = sample * (squares - mean_a**2 - mean_b**2), sample * (product - mean_a * mean_b)
    mean_a, mean_b = mean_a + middle_a, mean_b + middle_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean()


def _windowed(x: Array, axes: tuple[int, ...]) -> Array:
    """Means of x (n, H, W) in all windows that lie inside."""
    weights = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    weights /= weights.sum()
    for axis in axes:
        length = x.shape[1 + axis] - 2 * _RADIUS
        shifted = (lax.slice_in_dim(x, start, start + length, axis=1 + axis) for start in range(len(weights)))
        total = sum(weight * values for weight, values in zip(weights.tolist(), shifted, strict=True))
        # Without a barrier XLA computes the sums along one axis anew for each of the other's.
        x = lax.optimization_barrier(total)
    return x


def hog(map: ArrayLike) -> Array:
    """Histograms of oriented gradients of a map (H, W): float32 (blocks * 81,), its blocks in reading order.

    Cells of 16 x 16 pixels count the orientations of gradients in nine bins of 20 degrees, by magnitude; blocks of
    3 x 3 cells, a cell apart, are normalised (L2-Hys). Raises ValueError as `similarity`. Dalal and Triggs 2005;
    scikit-image's hog with pixels_per_cell=(16, 16), to rounding.
    """
    (checked,) = _checked(map, least=_CELL * _BLOCK)
    return run(_hog, checked)


def _hog(map: Array) -> Array:
    # Where a map does not change along an axis, as along its borders once it was enlarged, the sign of what remains
    # would put whole gradients into the first bin or the last.
    rounding = 4 * jnp.finfo(map.dtype).eps * jnp.abs(map).max()
    down, right = map[2:] - map[:-2], map[:, 2:] - map[:, :-2]
    down, right = (jnp.where(jnp.abs(side) <= rounding, 0, side) for side in (down, right))
    down, right = jnp.pad(down, ((1, 1), (0, 0))), jnp.pad(right, ((0, 0), (1, 1)))
    rows, columns = (side // _CELL for side in map.shape)
    votes = jnp.hypot(down, right)[..., None] * _orientations(down, right)
    votes = votes[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL, _ORIENTATIONS)
    cells = votes.mean((1, 3))
    high, wide = rows - _BLOCK + 1, columns - _BLOCK + 1
    inside = [cells[i : i + high, j : j + wide] for i in range(_BLOCK) for j in range(_BLOCK)]
    blocks = jnp.stack(inside, 2)  # (high, wide, cells, orientations)
    return _unit(jnp.minimum(_unit(blocks), _CLIP)).reshape(-1)


def _orientations(down: Array, right: Array) -> Array:
    """Which bin of half a turn a gradient (H, W) is in: (H, W, 9), one of them 1."""
    upwards = (down < 0) | ((down == 0) & (right < 0))
    down, right = (jnp.where(upwards, -side, side)[..., None] for side in (down, right))
    turn = np.arange(_ORIENTATIONS, dtype=np.float32) * np.float32(np.pi / _ORIENTATIONS)
    beyond = (down * np.cos(turn)[None, None] >= right * np.sin(turn)[None, None]).astype(jnp.float32)
    return beyond - jnp.pad(beyond[..., 1:], ((0, 0), (0, 0), (0, 1)))


def _unit(blocks: Array) -> Array:
    return blocks / jnp.sqrt((blocks**2).sum((-2, -1), keepdims=True) + _EPSILON**2)


def entropy(map: ArrayLike, *, bins: int = 100) -> Array:
    """Shannon's entropy of the histogram of a map's values (H, W), in nats, in bins of equal width: float32 scalar."""
    (checked,) = _checked(map, least=1)
    return run(_entropy, checked, bins=bins)


def _entropy(map: Array, *, bins: int) -> Array:
    place = unit_range(map, (0, 1)) * bins
    bin = jnp.minimum(place, bins - 1).astype(jnp.int32).reshape(-1)  # the last bin holds the maximum too
    shares = jnp.zeros(bins).at[bin].add(1) / map.size
    entropy = -(shares * jnp.log(jnp.where(shares > 0, shares, 1))).sum()
    return jnp.where(jnp.isfinite(map).all(), entropy, jnp.nan)


def entropy_rise(before: ArrayLike, after: ArrayLike, *, bins: int = 100) -> Array:
    """By how much the entropy of a map has risen, as a share of what it was: the score of eMPRT, a float32 scalar.

    before: the map of a trained model, after: of a random one, (H, W) each. A method that depends on what was learned
    has a map of higher entropy after. NaN where before is constant. Hedström et al. 2024, arXiv 2401.06465.
    """
    return run(_entropy_rise, *_checked(before, after, least=1), bins=bins)


def _entropy_rise(before: Array, after: Array, *, bins: int) -> Array:
    was = _entropy(before, bins=bins)
    return jnp.where(was > 0, (_entropy(after, bins=bins) - was) / jnp.where(was > 0, was, 1), jnp.nan)


def _checked(*maps: ArrayLike, least: int) -> list[Array]:
    """Maps as float32. Raises ValueError for what `similarity` names; least: pixels of a side."""
    given = [jnp.asarray(map) for map in maps]
    shapes = [map.shape for map in given]
    if len(set(shapes)) > 1:
        raise ValueError(f"maps have shapes {shapes[0]} and {shapes[1]}, expected the same (H, W)")
    if len(shapes[0]) != 2 or min(shapes[0]) < least:
        raise ValueError(
            f"maps have shape {shapes[0]}, expected (H, W), at least {least} x {least}: enlarge them first"
        )
    for map in given:
        if not is_traced(map) and (bad := int(jnp.count_nonzero(~jnp.isfinite(map)))):
            raise ValueError(f"maps hold {bad} values that are not finite in one of shape {map.shape}, expected none")
    return [map.astype(jnp.float32) for map in given]

"""Average ranks, Spearman's correlation and places in order on the device.

On a CPU the native library, where it is built, ranks by a radix sort. Where it is not, ranks do without a sort, because
XLA's, with a comparator per pair, is slower than SciPy there. They need only the number of smaller and of equal
values: every round throws the values of a group into as many buckets as the group has members (scatter), a running sum
of the bucket counts gives each bucket its place, and the buckets are the next round's groups. Three or four rounds,
each linear in the number of values, separate all distinct values of a real map; exact for any input.

Elsewhere a sort takes a whole batch of maps at once, where rounds, map by map, would be thousands of launches.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import sequential_vmap

from dcls_jax import native

Ties = Literal["earlier", "later"]

_SCAN_BLOCK = 64
_RESOLVED = 3  # the next split separates up to this many members: lowest, highest and one between


class _Groups(NamedTuple):
    """Of each value, the group it is in: its first place in sorted order, its size, its lowest and highest member."""

    first: Array
    size: Array
    low: Array
    high: Array


def _take(table: Array, index: Array) -> Array:
    return table.at[index].get(mode="promise_in_bounds")


def _running_sum(counts: Array) -> Array:
    """Inclusive running sum, by triangular matrices: `jnp.cumsum` takes three times as long on a CPU."""
    if counts.size <= _SCAN_BLOCK:
        return jnp.cumsum(counts)
    blocks = jnp.pad(counts, (0, -counts.size % _SCAN_BLOCK)).reshape(-1, _SCAN_BLOCK)
    triangle = jnp.triu(jnp.ones((_SCAN_BLOCK, _SCAN_BLOCK), counts.dtype))
    within = jnp.matmul(blocks, triangle, precision=lax.Precision.HIGHEST)  # counts are exact in float32, not in bf16
    before = _running_sum(within[:, -1]) - within[:, -1]
    return (within + before[:, None]).reshape(-1)[: counts.size]


def _split(x: Array, groups: _Groups) -> tuple[Array, Array]:
    """Split each group into as many buckets as it has members: (first place, size) of each value's bucket."""
    first, size, low, high = groups
    span = jnp.where(high > low, high - low, 1)
    between = 1 + jnp.minimum(jnp.floor((x - low) / span * (size - 2)), size - 3)
    bucket = (first + jnp.where(x == low, 0, jnp.where(x == high, size - 1, between))).astype(jnp.int32)
    counts = jnp.zeros_like(x).at[bucket].add(1, mode="promise_in_bounds")
    return _take(_running_sum(counts) - counts, bucket), _take(counts, bucket)


def _with_ends(x: Array, first: Array, size: Array) -> _Groups:
    index = first.astype(jnp.int32)
    low = jnp.full_like(x, jnp.inf).at[index].min(x, mode="promise_in_bounds")
    high = jnp.full_like(x, -jnp.inf).at[index].max(x, mode="promise_in_bounds")
    return _Groups(first, size, _take(low, index), _take(high, index))


def _unresolved(x: Array, groups: _Groups) -> Array:
    return jnp.any((groups.size > _RESOLVED) & (groups.low < x) & (x < groups.high))


@sequential_vmap  # one map's tables stay in the cache, and a map takes its own number of rounds
def _ranks_without_a_sort(x: Array) -> Array:
    x = x / 2  # so that no difference overflows
    whole = _Groups(jnp.zeros_like(x), jnp.full_like(x, x.size), jnp.full_like(x, x.min()), jnp.full_like(x, x.max()))
    groups = lax.while_loop(lambda g: _unresolved(x, g), lambda g: _with_ends(x, *_split(x, g)), whole)
    first, size = _split(x, groups)
    return first + (size + 1) / 2


def _finite_ranks(x: Array) -> Array:
    finite = jnp.isfinite(x).all()
    return jnp.where(finite, _ranks_without_a_sort(jnp.where(finite, x, 0)), jnp.nan)


def _ranks_in_order(ordered: Array) -> Array:
    """Of ascending values (n,): places from 1, those of equal values averaged."""
    place = jnp.arange(ordered.size, dtype=jnp.float32)
    edge, new = jnp.ones(1, bool), ordered[1:] != ordered[:-1]
    first = lax.cummax(jnp.where(jnp.concatenate([edge, new]), place, 0))
    last = lax.cummin(jnp.where(jnp.concatenate([new, edge]), place, ordered.size - 1), reverse=True)
    return (first + last) / 2 + 1


def _ranks_by_sorting(x: Array) -> Array:
    ordered, index = lax.sort((x, lax.iota(jnp.int32, x.size)), num_keys=1, is_stable=False)
    _, ranks = lax.sort((index, _ranks_in_order(ordered)), num_keys=1, is_stable=False)
    return jnp.where(jnp.isfinite(x).all(), ranks, jnp.nan)


def average_ranks(x: Array) -> Array:
    """Ranks from 1, ties sharing their average, of x read as one flat float32 array of at most 2**24 values.

    Equals `scipy.stats.rankdata` exactly; NaN throughout if any value is not finite. The shape is that of `x`.
    Values below 1e-37 of magnitude may count as equal to zero (devices flush them).
    """
    on_cpu = native.average_ranks if native.available() else _finite_ranks
    ranks: Array = lax.platform_dependent(x.reshape(-1).astype(jnp.float32), cpu=on_cpu, default=_ranks_by_sorting)
    return ranks.reshape(x.shape)


def places(*keys: Array, ties: Ties = "earlier") -> Array:
    """Places in descending order, 0 for the largest, of values (..., n) by the first key, where equal by the next.

    ties: of values equal by all keys, which comes first: that with the earlier index, or the later. int32 (..., n).
    """
    if ties == "later":
        return places(*(jnp.flip(key, -1) for key in keys))[..., ::-1]
    index = lax.broadcasted_iota(jnp.int32, keys[0].shape, keys[0].ndim - 1)
    *_, order = lax.sort((*(-key for key in keys), index), num_keys=len(keys), is_stable=True)
    return jnp.put_along_axis(jnp.zeros_like(index), order, index, -1, inplace=False)


def tied_share(values: Array) -> Array:
    """Of values (..., n), the share that equal another: (...) float32."""
    ordered = jnp.sort(values, axis=-1)
    same = ordered[..., 1:] == ordered[..., :-1]
    edge = jnp.zeros_like(same[..., :1])
    tied = jnp.concatenate([edge, same], -1) | jnp.concatenate([same, edge], -1)
    return tied.mean(-1, dtype=jnp.float32)


def spearman(a: Array, b: Array) -> Array:
    """Spearman's rank correlation of two maps of one shape, with average ranks for ties, as a float32 scalar.

    Equals `scipy.stats.spearmanr(a.ravel(), b.ravel())`; NaN if a map is constant or not finite. Jit and vmap at will.
    """
    if a.shape != b.shape:
        raise ValueError(f"spearman compares maps of one shape, got {a.shape} and {b.shape}")
    on_cpu = native.spearman if native.available() else _spearman_without_a_sort
    pair = (m.reshape(-1).astype(jnp.float32) for m in (a, b))
    result: Array = lax.platform_dependent(*pair, cpu=on_cpu, default=_spearman_by_sorting)
    return result


def _spearman_without_a_sort(a: Array, b: Array) -> Array:
    return _correlation_of_ranks(_finite_ranks(a), _finite_ranks(b))


def _spearman_by_sorting(a: Array, b: Array) -> Array:
    """Pixels change their places together, so that nothing is put back: by the first map, then by the second."""
    finite = jnp.isfinite(a).all() & jnp.isfinite(b).all()
    a, b = lax.sort((a, b), num_keys=1, is_stable=False)
    b, ranks = lax.sort((b, _ranks_in_order(a)), num_keys=1, is_stable=False)
    return jnp.where(finite, _correlation_of_ranks(ranks, _ranks_in_order(b)), jnp.nan)


def _correlation_of_ranks(x: Array, y: Array) -> Array:
    # the mean rank is (n + 1) / 2 whatever the ties, so centred ranks are exact; scaled, their squares stay near one
    x, y = ((2 * ranks - (ranks.size + 1)) / ranks.size for ranks in (x, y))
    return jnp.mean(x * y) / (jnp.sqrt(jnp.mean(x * x)) * jnp.sqrt(jnp.mean(y * y)))

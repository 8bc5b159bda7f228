"""Methods that decompose the activations: principal components, outstanding cells, non-negative factors.

X (Z, C) is one image's activation with a row per cell, centred: every channel has mean 0 over the cells. Methods
without a gradient take targets like all others, and ignore them.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.gradient import Reduce, channel_sum
from dcls_jax.cam.model import Model, activations_and_gradients, split
from dcls_jax.cam.space import mean, rounding
from dcls_jax.cam.targets import Targets

Sign = Literal["peak", "sum"]
Form = Literal["fraction", "mask"]

# Kernels as sklearn's KernelPCA has them by default, of inner products (Z, Z) and gamma.
KERNELS: dict[str, Callable[[Array, float], Array]] = {
    "linear": lambda dots, gamma: dots,
    "sigmoid": lambda dots, gamma: jnp.tanh(gamma * dots + 1),
    "poly": lambda dots, gamma: (gamma * dots + 1) ** 3,
    "rbf": lambda dots, gamma: jnp.exp(-gamma * (jnp.diag(dots)[:, None] + jnp.diag(dots) - 2 * dots)),
}

_dot = partial(jnp.matmul, precision="highest")


def eigen_cam(model: Model, images: Array, targets: Targets | None = None, *, layer: str | None = None) -> Array:
    """X v1, v1 the first right singular vector of X: raw maps (B, *space). Eigen-CAM, arXiv 2008.00299.

    The cell of largest magnitude is positive, as in Seg-Eigen-CAM: the method itself leaves the sign open.
    """
    return principal_map(split(model, images, layer)[0])


def eigen_grad_cam(model: Model, images: Array, targets: Targets, *, layer: str | None = None) -> Array:
    """X v1 with g * A in place of A: raw maps (B, *space). Eigen-Grad-CAM of pytorch-grad-cam.

    The map correlates positively with HiResCAM's, the sum of g * A: positive is evidence for the target.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return eigen_smooth(g * a)


def seg_eigen_cam(model: Model, images: Array, targets: Targets, *, layer: str | None = None) -> Array:
    """X v1 with |g| * A in place of A, the cell of largest magnitude positive: raw maps (B, *space).

    Seg-Eigen-CAM, doi 10.3390/app15137562, equation 13.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return principal_map(jnp.abs(g) * a)


def eigen_smooth(contributions: Array) -> Array:
    """The first principal component of what a method sums over channels: (B, *space, C) -> (B, *space).

    pytorch-grad-cam's `eigen_smooth`, as the option reduce=eigen_smooth of the methods that sum w_k A_k; oriented like
    the sum that it replaces.
    """
    return principal_map(contributions, sign="sum")


def kpca_cam(
    model: Model,
    images: Array,
    targets: Targets | None = None,
    *,
    layer: str | None = None,
    kernel: str = "sigmoid",
    gamma: float | None = None,
) -> Array:
    """The first kernel principal component of X's rows: raw maps (B, *space). KPCA-CAM, arXiv 2410.00267.

    kernel: linear (Eigen-CAM), sigmoid, poly or rbf; gamma: 1 / C unless given; both as sklearn's KernelPCA. Largest
    magnitude positive. The time grows with the cube of h w. Raises ValueError for another kernel.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel (={kernel!r}) must be one of {', '.join(KERNELS)}")

    def coordinates(x: Array) -> Array:
        k = KERNELS[kernel](_dot(x, x.T), 1 / x.shape[1] if gamma is None else gamma)
        noise = len(k) * jnp.finfo(k.dtype).eps * jnp.abs(k).max()
        k = k - k.mean()  # alone changes nothing, but the next line then rounds less
        return _scaled_eigenvector(k - k.mean(0) - k.mean(1, keepdims=True) + k.mean(), noise)

    return _per_image(coordinates, split(model, images, layer)[0], "peak")


def fem(
    model: Model,
    images: Array,
    targets: Targets | None = None,
    *,
    layer: str | None = None,
    k: float = 2.0,
    form: Form = "fraction",
    reduce: Reduce = channel_sum,
) -> Array:
    """Outstanding cells, above mean + k standard deviations of their channel: raw maps (B, *space). hal-02963298.

    form: "fraction" weighs A_k by the fraction of its outstanding cells (pytorch-grad-cam); "mask" weighs the mask of
    outstanding cells by <A_k> (xplique, nearer to the paper's words). Raises ValueError for another form.
    """
    a, _ = split(model, images, layer)
    middle = mean(a)
    bound = middle + k * jnp.sqrt(mean((a - middle) ** 2))
    if form == "fraction":
        return reduce(mean((a > bound).astype(a.dtype)) * a)
    if form == "mask":
        return reduce(middle * (a >= bound))
    raise ValueError(f"form (={form!r}) must be 'fraction' or 'mask'")


class Factors(NamedTuple):
    """What `deep_feature_factorisation` finds; n is the number of components, the most energetic first."""

    maps: Array  # (B, n, *space), at least 0; the largest value of each component is 1
    concepts: Array  # (n, C), or (B, n, C) where images are factorised alone: the activation where a map is 1
    error: Array  # (), or (B,): norm of what the factors leave over, relative to the norm of the activations


def deep_feature_factorisation(
    model: Model,
    images: Array,
    *,
    layer: str | None = None,
    components: int = 5,
    joint: bool = True,
    steps: int = 100,
    key: Array | None = None,
) -> Factors:
    """Activations as sums of few non-negative concepts, A - min A = maps x concepts. DFF, arXiv 1806.10206.

    Channels are shifted to a minimum of 0 first and concepts shifted back, as in pytorch-grad-cam, so that
    `model.head(concepts[:, None, None])` says what the classifier makes of them. joint: one set of concepts for all
    images, as published; otherwise each image has its own, and images do not interact. steps: of the optimiser.
    key: of the random start, `jax.random.key(0)` unless given. Raises ValueError unless components is at least 1.
    """
    if components < 1:
        raise ValueError(f"components (={components}) must be at least 1")
    a, _ = split(model, images, layer)
    batch, *space, channels = a.shape
    key = jax.random.key(0) if key is None else key

    def factorise(x: Array) -> tuple[Array, Array, Array]:
        offset = x.min(0)
        x = x - offset
        maps, concepts = non_negative_factors(x, components, steps=steps, key=key)
        error = jnp.linalg.norm(x - _dot(maps, concepts)) / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)
        return maps, concepts + offset, error

    x = a.reshape(batch, -1, channels).astype(jnp.float32)
    maps, concepts, error = factorise(x.reshape(-1, channels)) if joint else jax.vmap(factorise)(x)
    maps = jnp.moveaxis(maps.reshape(batch, *space, components), -1, 1)
    return Factors(maps.astype(a.dtype), concepts.astype(a.dtype), error)


def non_negative_factors(x: Array, components: int, *, steps: int, key: Array) -> tuple[Array, Array]:
    """H (Z, n) and W (n, C), both at least 0, with H W near x (Z, C), which is: one component after another is optimal.

    Hierarchical alternating least squares (Cichocki and Phan 2009, doi 10.1587/transfun.E92.A.708), as multiplicative
    updates stall. Each column of H has maximum 1 (0 where it vanishes); columns are in the order of their energy.
    """
    scale = _positive(x.max())
    x = x / scale

    def columns(h: Array, products: Array, gram: Array) -> Array:
        """Each column of H in turn at its best: products X W^T, gram W W^T."""

        def one(k: Array, h: Array) -> Array:
            return h.at[:, k].set(jax.nn.relu(h[:, k] + (products[:, k] - _dot(h, gram[:, k])) / _positive(gram[k, k])))

        return jax.lax.fori_loop(0, components, one, h)

    def step(_: int, factors: tuple[Array, Array]) -> tuple[Array, Array]:
        h, w = factors
        h = columns(h, _dot(x, w.T), _dot(w, w.T))
        return h, columns(w.T, _dot(x.T, h), _dot(h.T, h)).T

    size = jnp.sqrt(x.mean() / components)
    shapes = (len(x), components), (components, x.shape[1])
    draws = [size * jnp.abs(jax.random.normal(k, s)) for k, s in zip(jax.random.split(key), shapes, strict=True)]
    h, w = jax.lax.fori_loop(0, steps, step, (draws[0], draws[1]))
    peak = _positive(h.max(0))
    h, w = h / peak, w * peak[:, None] * scale
    order = jnp.argsort(-(jnp.linalg.norm(h, axis=0) * jnp.linalg.norm(w, axis=1)))
    return h[:, order], w[order]


def principal_map(x: Array, *, sign: Sign = "peak") -> Array:
    """X v1, the cells' coordinates along their first principal direction: (B, *space, C) -> (B, *space).

    Computed in float32 from the smaller Gram matrix, scaled so that tiny gradients do not vanish when squared.
    sign: "peak", the cell of largest magnitude is positive; "sum", the map correlates positively with the sum over
    channels (or as "peak" where it does not correlate).
    """

    def coordinates(x: Array) -> Array:
        scale = _positive(jnp.abs(x).max())
        x = x / scale
        cells, channels = x.shape
        if cells <= channels:
            return _scaled_eigenvector(_dot(x, x.T)) * scale
        return _dot(x, jnp.linalg.eigh(_dot(x.T, x))[1][:, -1]) * scale

    return _per_image(coordinates, x, sign)


def _per_image(coordinates: Callable[[Array], Array], a: Array, sign: Sign) -> Array:
    """Coordinates of the centred rows (Z, C) -> (Z,), for each image (B, *space, C), oriented: (B, *space).

    0 where the rows differ by rounding alone.
    """

    def one(x: Array) -> Array:
        centred = x - x.mean(0)
        constant = jnp.abs(centred).max() <= rounding(a.dtype) * jnp.abs(x).max()
        return jnp.where(constant, 0, _orient(coordinates(centred), centred.sum(1) if sign == "sum" else None))

    x = a.reshape(len(a), -1, a.shape[-1]).astype(jnp.float32)
    return jax.vmap(one)(x).reshape(a.shape[:-1]).astype(a.dtype)


def _scaled_eigenvector(gram: Array, noise: ArrayLike = 0) -> Array:
    """Coordinates (Z,) of the first principal component from the inner products (Z, Z); 0 if it is but rounding."""
    values, vectors = jnp.linalg.eigh(gram)
    return vectors[:, -1] * jnp.sqrt(jnp.where(values[-1] > noise, values[-1], 0))


def _orient(coordinates: Array, towards: Array | None) -> Array:
    """With the sign that fits `towards`, or None: that makes the peak positive."""
    peak = coordinates[jnp.argmax(jnp.abs(coordinates))]
    likeness = 0 if towards is None else _unit(coordinates) @ _unit(towards)
    return jnp.where(jnp.where(likeness == 0, peak, likeness) < 0, -coordinates, coordinates)


def _unit(x: Array) -> Array:
    return x / _positive(jnp.abs(x).max())


def _positive(scale: Array) -> Array:
    return jnp.where(scale > 0, scale, 1)

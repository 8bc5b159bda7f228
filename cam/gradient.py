"""Methods that weigh activations by the gradient of the score to them.

Each takes any model with `features(images)` and `head(activations)`, and returns the raw signed map (B, h, w), summed
over channels as the papers write it (reduce=`eigen_smooth` takes the principal component of the terms instead of their
sum, where a method has that option). The gradient runs through the head alone. A is the activation (B, h, w, C), g the
gradient of the explained score to it, <.> the mean over space, S the sum over space, Z the number of cells, k a
channel.

Space may have any number of axes: tokens (B, n, C) give (B, n), volumes (B, d, h, w, C) give (B, d, h, w).
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr
from jax.typing import ArrayLike

from dcls_jax.cam.targets import Contrast, Targets, nearest_classes, scores

Reduce = Callable[[Array], Array]


class Model(Protocol):
    """Any pytree that splits into features, (B, H, W, 3) -> (B, h, w, C), and head, (B, h, w, C) -> (B, ...).

    Models that can be cut at a `layer` take its name: features(images, upto=layer), head(activations, start=layer).
    """

    @property
    def features(self) -> Callable[..., Array]: ...

    @property
    def head(self) -> Callable[..., Array]: ...


def channel_sum(terms: Array) -> Array:
    """What a method sums over channels, (B, h, w, C) -> (B, h, w)."""
    return terms.sum(-1)


def activations(model: Model, images: Array, layer: str | None = None) -> Array:
    """A (B, h, w, C) at a layer (None: where the model itself ends its features)."""
    return model.features(images) if layer is None else model.features(images, upto=layer)


def head_from(model: Model, layer: str | None = None) -> Callable[[Array], Array]:
    """The rest of the model, from A (B, h, w, C) at a layer to the output (B, ...)."""
    return model.head if layer is None else partial(model.head, start=layer)


def score_gradient(head: Callable[[Array], Array], targets: Targets) -> Callable[[Array], Array]:
    """A -> g, both (B, h, w, C)."""
    # Images do not interact in a head, so the gradient of the sum holds each image's own.
    return jax.grad(lambda a: scores(head(a), targets).sum())


def activations_and_gradients(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None
) -> tuple[Array, Array]:
    """A and g, both (B, h, w, C), at a layer (None: where the model itself ends its features)."""
    a = activations(model, images, layer)
    return a, score_gradient(head_from(model, layer), targets)(a)


def grad_cam(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k <g_k> A_k: images (B, H, W, 3) -> raw maps (B, h, w). Grad-CAM, arXiv 1610.02391."""
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return reduce(_mean(g) * a)


def hires_cam(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k g_k A_k: images (B, H, W, 3) -> raw maps (B, h, w). HiResCAM, arXiv 2011.08891.

    For a head that is linear after flattening the map sums to the logit without its bias.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return reduce(g * a)


def elementwise(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k relu(g_k A_k): images (B, H, W, 3) -> raw maps (B, h, w). GradCAMElementWise of pytorch-grad-cam."""
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return reduce(jax.nn.relu(g * a))


def layer_cam(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k relu(g_k) A_k: images (B, H, W, 3) -> raw maps (B, h, w). LayerCAM, doi 10.1109/TIP.2021.3089943."""
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return reduce(jax.nn.relu(g) * a)


def threshold_grad_cam(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k relu(<g_k> A_k): images (B, H, W, 3) -> raw maps (B, h, w). Threshold-Grad-CAM, arXiv 2408.03164.

    The threshold itself is presentation: `postprocess(maps, relu=False, floor=0.3)`, min-max, then floor, then
    resize; a constant map becomes the floor.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return reduce(jax.nn.relu(_mean(g) * a))


def xgrad_cam(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k w_k A_k, w_k = S(g_k A_k) / S(A_k): images (B, H, W, 3) -> raw maps (B, h, w). XGrad-CAM, arXiv 2008.02312.

    A map sums to what HiResCAM's does, unless S(A_k) of signed activations is no more than rounding: there w_k = <g_k>.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    total = _sum(a)
    sound = jnp.abs(total) > jnp.finfo(a.dtype).eps * _sum(jnp.abs(a))
    weights = jnp.where(sound, _sum(g * a) / jnp.where(sound, total, 1), _mean(g))
    return reduce(weights * a)


def grad_cam_pp(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    normalised: bool = False,
    epsilon: float = 0.0,
    reduce: Reduce = channel_sum,
) -> Array:
    """sum_k w_k A_k, w_k = S(alpha_k relu(g_k)): images (B, H, W, 3) -> raw maps (B, h, w). Grad-CAM++.

    alpha_k = g_k^2 / (2 g_k^2 + S(A_k) g_k^3 + epsilon), arXiv 1710.11063, equation 19, which takes A >= 0; 0 where the
    denominator is 0. normalised: the authors' code, where alpha_k sums to 1 over the cells of positive gradient (up to
    their factor exp(y) for the whole map). epsilon: 1e-6 is pytorch-grad-cam's, under which small gradients lose their
    map.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    return reduce(_plus_plus_weights(a, g, g**2, g**3, normalised, epsilon) * a)


def smooth_grad_cam_pp(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    key: Array,
    layer: str | None = None,
    samples: int = 4,
    noise: float = 0.3,
    normalised: bool = False,
    epsilon: float = 0.0,
    reduce: Reduce = channel_sum,
) -> Array:
    """Grad-CAM++ with g, g^2 and g^3 averaged over noisy images: images (B, H, W, 3) -> raw maps (B, h, w).

    key: one, whose noise every image gets alike, or one per image (B,). noise: its standard deviation in the model's
    input. A is that of the clean image. Smooth Grad-CAM++, arXiv 1908.01224; torch-cam instead takes relu(g) of the
    last sample alone, and sums A g^3 over space where equation 19 has S(A) g^3.
    """
    a = activations(model, images, layer)
    keys = jax.vmap(partial(jax.random.split, num=samples), out_axes=1)(_one_per_image(key, len(images)))

    def powers(keys: Array) -> tuple[Array, Array, Array]:
        drawn = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
        _, g = activations_and_gradients(model, images + noise * drawn, targets, layer=layer)
        return g, g**2, g**3

    g1, g2, g3 = jax.tree.map(lambda powers: powers.mean(0), jax.lax.map(powers, keys))
    return reduce(_plus_plus_weights(a, g1, g2, g3, normalised, epsilon) * a)


def _plus_plus_weights(a: Array, g1: Array, g2: Array, g3: Array, normalised: bool, epsilon: float) -> Array:
    """Weights (B, 1, 1, C) of Grad-CAM++ from the mean first, second and third powers of the gradient."""
    denominator = 2 * g2 + _sum(a) * g3 + epsilon
    alpha = jnp.where(denominator == 0, 0, g2 / jnp.where(denominator == 0, 1, denominator))
    if normalised:
        total = _sum(jnp.where(g1 > 0, alpha, 0))
        alpha = alpha / jnp.where(total == 0, 1, total)
    return _sum(alpha * jax.nn.relu(g1))


def shapley_cam(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k <g_k - (H A)_k / 2> A_k, H the Hessian of the score: images (B, H, W, 3) -> raw maps (B, h, w).

    Shapley-CAM, arXiv 2501.06261, whose authors explain `Rest`. Grad-CAM where the head is piecewise linear.
    """
    a = activations(model, images, layer)
    g, curvature = jax.jvp(score_gradient(head_from(model, layer), targets), (a,), (a,))
    return reduce(_mean(g - curvature / 2) * a)


def integrated_grad_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    steps: int = 50,
    baseline: ArrayLike = 0.0,
    activation_baseline: ArrayLike | None = 0.0,
) -> Array:
    """mean_t relu(sum_k <g_k> (A_k - A'_k)), t from a baseline to the image: images (B, H, W, 3) -> raw maps (B, h, w).

    The steps are t / steps, t = 0 .. steps - 1, with the baseline and without the image, as in the authors' code, which
    sums over them: `steps` times this. baseline: in the model's input, broadcast to images (0 is the mean colour of
    normalised images, not black). activation_baseline: A', broadcast to A; None is A of the baseline image.
    Integrated Grad-CAM, arXiv 2102.07805. Raises ValueError for steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps (={steps}) must be at least 1")
    start = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    a_start = activations(model, start, layer) if activation_baseline is None else jnp.asarray(activation_baseline)

    def step(fraction: Array) -> Array:
        a, g = activations_and_gradients(model, start + fraction * (images - start), targets, layer=layer)
        return jax.nn.relu((_mean(g) * (a - a_start.astype(a.dtype))).sum(-1))

    return jax.lax.map(step, jnp.arange(steps, dtype=images.dtype) / steps).mean(0)


def finer_cam(
    model: Model,
    images: Array,
    targets: Array,
    *,
    layer: str | None = None,
    base: Callable[..., Array] = grad_cam,
    count: int = 3,
    strength: float = 1.0,
    weighted: bool = True,
) -> Array:
    """What tells a class from its nearest: `base` explaining `Contrast` with the `count` classes of nearest logits.

    targets: int labels (B,). images (B, H, W, 3) -> raw maps (B, h, w). The defaults are the authors' (arXiv
    2501.11309); torch-cam has strength=0.6, weighted=False. Raises ValueError for other targets and a count beyond
    the other classes.
    """
    labels = jnp.asarray(targets)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"targets have shape {labels.shape} and dtype {labels.dtype}, expected int labels (B,)")
    logits = head_from(model, layer)(activations(model, images, layer))
    contrast = Contrast(labels, nearest_classes(logits, labels, count), strength, weighted)
    return base(model, images, contrast, layer=layer)


def cam(model: Model, images: Array, targets: Targets | None = None, *, layer: str | None = None) -> Array:
    """sum_k W_ck A_k for global average pooling and a linear layer W: images (B, H, W, 3) -> raw maps (B, h, w).

    targets None: of all classes at once, (B, classes, h, w). A map's mean is the logit without its bias. W is read
    off the head's derivative, so that for other affine heads this is Z times Grad-CAM. CAM, arXiv 1512.04150. Raises
    ValueError where the gradient depends on the activation: such a head has no CAM.
    """
    a, head = activations(model, images, layer), head_from(model, layer)
    explained = head if targets is None else lambda a: scores(head(a), targets)
    if not _is_affine(explained, a):
        raise ValueError(f"CAM needs an affine score, which it is not from layer {layer or 'features'!r} on")
    if targets is not None:
        return (_sum(score_gradient(head, targets)(a)) * a).sum(-1)
    outputs, pull_back = jax.vjp(head, a[:1])
    (g,) = jax.vmap(pull_back)(jnp.eye(outputs.shape[1], dtype=outputs.dtype)[:, None])
    return jnp.einsum("b...k,ck->bc...", a, g.sum(tuple(range(1, g.ndim - 1))))


def _is_affine(f: Callable[[Array], Array], a: Array) -> bool:
    """Whether the gradient of f is the same everywhere, by the program that computes it, not by values."""

    def gradient(a: Array) -> Array:
        outputs, pull_back = jax.vjp(f, a)
        return pull_back(jnp.ones_like(outputs))[0]

    jaxpr = jax.make_jaxpr(gradient)(a).jaxpr
    return not any(dce_jaxpr(jaxpr, [True])[1])


def random_cam(
    model: Model, images: Array, targets: Targets | None = None, *, key: Array, layer: str | None = None
) -> Array:
    """sum_k w_k A_k, w uniform in (-1, 1): images (B, H, W, 3) -> raw maps (B, h, w). What any method must beat.

    key: one, whose weights every image gets alike, or one per image (B,). targets are not looked at.
    """
    a = activations(model, images, layer)
    draw = partial(jax.random.uniform, shape=a.shape[-1:], dtype=a.dtype, minval=-1, maxval=1)
    return jnp.einsum("b...k,bk->b...", a, jax.vmap(draw)(_one_per_image(key, len(a))))


def _one_per_image(key: Array, batch: int) -> Array:
    return jnp.broadcast_to(key, (batch,))


def _mean(x: Array) -> Array:
    """Over space, kept as axes of length 1."""
    return x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)


def _sum(x: Array) -> Array:
    return x.sum(tuple(range(1, x.ndim - 1)), keepdims=True)

"""Methods that weigh activations by the gradient of the score to them.

Each takes any model with `features(images)` and `head(activations)`, and returns the raw signed map (B, *space), summed
over channels as the papers write it (reduce=`eigen_smooth` takes the principal component of the terms instead of their
sum). The gradient runs through the head alone. A is the activation (B, *space, C), g the gradient of the explained
score to it, <.> the mean over space, S the sum over space, Z the number of cells, k a channel.
"""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Protocol, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr
from jax.typing import ArrayLike

from dcls_jax.cam.model import Model, activations_and_gradients, output_of, score_gradient, split
from dcls_jax.cam.space import baseline_of, keys_of, like_channels, mean, noise_like, sample_keys, total
from dcls_jax.cam.targets import Contrast, Targets, nearest_classes, scores

Reduce = Callable[[Array], Array]
Terms = Callable[[Array, Array], Array]


def channel_sum(terms: Array) -> Array:
    """What a method sums over channels, (B, *space, C) -> (B, *space)."""
    return terms.sum(-1)


class GradientMethod(Protocol):
    """A method that sums terms(A, g) over channels."""

    terms: Terms

    def __call__(
        self, model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
    ) -> Array: ...


def method_of(terms: Terms) -> GradientMethod:
    """The method whose terms these are, under their name."""

    def method(
        model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
    ) -> Array:
        return reduce(terms(*activations_and_gradients(model, images, targets, layer=layer)))

    named = update_wrapper(method, terms, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    del named.__wrapped__  # type: ignore[attr-defined]  # the signature is the method's own
    named.terms = terms  # type: ignore[attr-defined]
    return cast(GradientMethod, named)


@method_of
def grad_cam(a: Array, g: Array) -> Array:
    """sum_k <g_k> A_k: images (B, *size, 3) -> raw maps (B, *space). Grad-CAM, arXiv 1610.02391."""
    return mean(g) * a


@method_of
def hires_cam(a: Array, g: Array) -> Array:
    """sum_k g_k A_k: images (B, *size, 3) -> raw maps (B, *space). HiResCAM, arXiv 2011.08891.

    For a head that is linear after flattening the map sums to the logit without its bias.
    """
    return g * a


@method_of
def elementwise(a: Array, g: Array) -> Array:
    """sum_k relu(g_k A_k): images (B, *size, 3) -> raw maps (B, *space). GradCAMElementWise of pytorch-grad-cam."""
    return jax.nn.relu(g * a)


@method_of
def layer_cam(a: Array, g: Array) -> Array:
    """sum_k relu(g_k) A_k: images (B, *size, 3) -> raw maps (B, *space). LayerCAM, doi 10.1109/TIP.2021.3089943."""
    return jax.nn.relu(g) * a


@method_of
def threshold_grad_cam(a: Array, g: Array) -> Array:
    """sum_k relu(<g_k> A_k): images (B, *size, 3) -> raw maps (B, *space). Threshold-Grad-CAM, arXiv 2408.03164.

    The threshold itself is presentation: `postprocess(maps, relu=False, floor=0.3)`, min-max, then floor, then
    resize; a constant map becomes the floor.
    """
    return jax.nn.relu(mean(g) * a)


@method_of
def xgrad_cam(a: Array, g: Array) -> Array:
    """sum_k w_k A_k, w_k = S(g_k A_k) / S(A_k): images (B, *size, 3) -> raw maps (B, *space). XGrad-CAM, 2008.02312.

    A map sums to what HiResCAM's does, unless S(A_k) of signed activations is no more than rounding: there w_k = <g_k>.
    """
    sums = total(a)
    sound = jnp.abs(sums) > jnp.finfo(a.dtype).eps * total(jnp.abs(a))
    return jnp.where(sound, total(g * a) / jnp.where(sound, sums, 1), mean(g)) * a


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
    """sum_k w_k A_k, w_k = S(alpha_k relu(g_k)): images (B, *size, 3) -> raw maps (B, *space). Grad-CAM++.

    alpha_k = g_k^2 / (2 g_k^2 + S(A_k) g_k^3 + epsilon), arXiv 1710.11063, equation 19, which takes A >= 0; 0 where the
    denominator is 0. normalised: the authors' code, where alpha_k sums to 1 over the cells of positive gradient (up to
    their factor exp(y) for the whole map). epsilon: 1e-6 is pytorch-grad-cam's, under which small gradients lose their
    map.
    """
    a, g = activations_and_gradients(model, images, targets, layer=layer)
    # Without epsilon g^2 cancels, which underflows where the model is certain.
    powers = _powers(g) if epsilon else (_powers(g)[0], jnp.ones_like(g), g)
    return reduce(_plus_plus_weights(a, *powers, normalised, epsilon) * a)


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
    """Grad-CAM++ with g, g^2 and g^3 averaged over noisy images: images (B, *size, 3) -> raw maps (B, *space).

    key: one, whose noise every image gets alike, or one per image (B,). noise: its standard deviation in the model's
    input. A is that of the clean image. Smooth Grad-CAM++, arXiv 1908.01224; torch-cam instead takes relu(g) of the
    last sample alone, and sums A g^3 over space where equation 19 has S(A) g^3.
    """
    keys = sample_keys(key, len(images), samples)
    a, _ = split(model, images, layer)

    def add(sums: tuple[Array, ...], keys: Array) -> tuple[tuple[Array, ...], None]:
        _, g = activations_and_gradients(model, images + noise * noise_like(images, keys), targets, layer=layer)
        return tuple(s + power / samples for s, power in zip(sums, _powers(g), strict=True)), None

    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(_powers, a))
    (g1, g2, g3), _ = jax.lax.scan(add, nothing, keys)
    return reduce(_plus_plus_weights(a, g1, g2, g3, normalised, epsilon) * a)


def _powers(g: Array) -> tuple[Array, Array, Array]:
    """g, g^2 and g^3, in which float16 has no room for small gradients."""
    g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    return g, g**2, g**3


def _plus_plus_weights(a: Array, g1: Array, g2: Array, g3: Array, normalised: bool, epsilon: float) -> Array:
    """Weights (B, 1, ..., C) of Grad-CAM++ from the mean first, second and third powers of the gradient."""
    denominator = 2 * g2 + total(a.astype(g1.dtype)) * g3 + epsilon
    alpha = jnp.where(denominator == 0, 0, g2 / jnp.where(denominator == 0, 1, denominator))
    if normalised:
        sums = total(jnp.where(g1 > 0, alpha, 0))
        alpha = alpha / jnp.where(sums == 0, 1, sums)
    return total(alpha * jax.nn.relu(g1)).astype(a.dtype)


def shapley_cam(
    model: Model, images: Array, targets: Targets, *, layer: str | None = None, reduce: Reduce = channel_sum
) -> Array:
    """sum_k <g_k - (H A)_k / 2> A_k, H the Hessian of the score: images (B, *size, 3) -> raw maps (B, *space).

    Shapley-CAM, arXiv 2501.06261, whose authors explain `Rest`. Grad-CAM where the head is piecewise linear.
    """
    a, head = split(model, images, layer)
    g, curvature = jax.jvp(score_gradient(head, targets), (a,), (a,))
    return reduce(mean(g - curvature / 2) * a)


def integrated_grad_cam(
    model: Model,
    images: Array,
    targets: Targets,
    *,
    layer: str | None = None,
    steps: int = 50,
    baseline: ArrayLike = 0.0,
    activation_baseline: ArrayLike | None = 0.0,
    reduce: Reduce = channel_sum,
) -> Array:
    """mean_t relu(sum_k <g_k> (A_k - A'_k)), t from a baseline to the image: images (B, *size, 3) -> maps (B, *space).

    The steps are t / steps, t = 0 .. steps - 1, with the baseline and without the image, as in the authors' code, which
    sums over them: `steps` times this. baseline: in the model's input, a number, one per image and channel (B, 3), or
    images (0 is the mean colour of normalised ones, not black). activation_baseline: A', likewise; None is A of the
    baseline image.
    Integrated Grad-CAM, arXiv 2102.07805. Raises ValueError for steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps (={steps}) must be at least 1")
    start = baseline_of(baseline, images)
    of_image, _ = split(model, images if activation_baseline is not None else start, layer)
    a_start = of_image if activation_baseline is None else baseline_of(activation_baseline, of_image)

    def step(fraction: Array) -> Array:
        a, g = activations_and_gradients(model, start + fraction * (images - start), targets, layer=layer)
        return jax.nn.relu(reduce(mean(g) * (a - a_start)))

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
    reduce: Reduce = channel_sum,
) -> Array:
    """What tells a class from its nearest: `base` explaining `Contrast` with the `count` classes of nearest logits.

    targets: int labels (B,). images (B, *size, 3) -> raw maps (B, *space). The defaults are the authors' (arXiv
    2501.11309); torch-cam has strength=0.6, weighted=False. Raises ValueError for other targets and a count beyond
    the other classes.
    """
    if callable(targets):
        raise ValueError(
            f"targets (a {type(targets).__name__}) must be int labels (B,): other classes are nearest to one"
        )
    labels = jnp.asarray(targets)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"targets have shape {labels.shape} and dtype {labels.dtype}, must be int labels (B,)")
    contrast = Contrast(labels, nearest_classes(output_of(model, images), labels, count), strength, weighted)
    return base(model, images, contrast, layer=layer, reduce=reduce)


def cam(
    model: Model,
    images: Array,
    targets: Targets | None = None,
    *,
    layer: str | None = None,
    reduce: Reduce = channel_sum,
) -> Array:
    """sum_k W_ck A_k for global average pooling and a linear layer W: images (B, *size, 3) -> raw maps (B, *space).

    targets None: of all classes at once, (B, classes, *space). A map's mean is the logit without its bias. W is read
    off the head's derivative, so that for other affine heads this is Z times Grad-CAM. CAM, arXiv 1512.04150. Raises
    ValueError where the gradient depends on the activation: such a head has no CAM.
    """
    a, head = split(model, images, layer)
    explained = head if targets is None else lambda a: scores(head(a), targets)
    if not _is_affine(explained, a):
        raise ValueError(f"CAM needs an affine score, which it is not from layer {layer or 'features'!r} on")
    if targets is not None:
        return reduce(total(score_gradient(head, targets)(a)) * a)
    outputs, pull_back = jax.vjp(head, a)

    def of_class(unit: Array) -> Array:
        (g,) = pull_back(jnp.broadcast_to(unit, outputs.shape))
        return reduce(total(g) * a)

    return jnp.moveaxis(jax.lax.map(of_class, jnp.eye(outputs.shape[1], dtype=outputs.dtype)), 0, 1)


def _is_affine(f: Callable[[Array], Array], a: Array) -> bool:
    """Whether the gradient of f is the same everywhere, by the program that computes it, not by values."""

    def gradient(a: Array) -> Array:
        outputs, pull_back = jax.vjp(f, a)
        return pull_back(jnp.ones_like(outputs))[0]

    jaxpr = jax.make_jaxpr(gradient)(a).jaxpr
    return not any(dce_jaxpr(jaxpr, [True])[1])


def random_cam(
    model: Model,
    images: Array,
    targets: Targets | None = None,
    *,
    key: Array,
    layer: str | None = None,
    reduce: Reduce = channel_sum,
) -> Array:
    """sum_k w_k A_k, w uniform in (-1, 1): images (B, *size, 3) -> raw maps (B, *space). What any method must beat.

    key: one, whose weights every image gets alike, or one per image (B,). targets are not looked at.
    """
    a, _ = split(model, images, layer)
    draw = partial(jax.random.uniform, shape=a.shape[-1:], dtype=a.dtype, minval=-1, maxval=1)
    return reduce(like_channels(jax.vmap(draw)(keys_of(key, len(a))), a) * a)

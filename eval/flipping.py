"""Deletion and insertion: what a model's confidence does when the pixels that a map calls important go or come."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.grouping import gaussian_blur
from dcls_jax.cam.masks import chosen_convention
from dcls_jax.cam.programs import run
from dcls_jax.cam.space import convolve_axes
from dcls_jax.cam.targets import Targets
from dcls_jax.eval.rank import Ties, places
from dcls_jax.eval.scoring import (
    CHUNK,
    at_size,
    check_positive,
    checked_images,
    checked_maps,
    of_versions,
    predicted,
    without_maps,
)
from dcls_jax.eval.status import Status


def zeros(images: Array) -> Array:
    """Images of the transform's mean colour."""
    return jnp.zeros_like(images)


def blur_11(images: Array) -> Array:
    """RISE's blur: 11 x 11, sigma 5, beyond the border the transform's mean colour.

    Its kernel is an impulse blurred within 11 pixels, reflected at their ends: nearly flat.
    """
    from scipy.ndimage import gaussian_filter1d

    return convolve_axes(images, gaussian_filter1d(np.eye(11)[5], 5.0), "constant")


def blur_51(images: Array) -> Array:
    """Group-CAM's blur: 51 x 51, sigma 50, reflected at the border."""
    return gaussian_blur(images, 51, 50.0)


SUBSTRATES = {"zeros": zeros, "blur_11": blur_11, "blur_51": blur_51}


@dataclass(frozen=True)
class FlippingPreset:
    """How deletion and insertion are done.

    step: pixels of a step, the last of which may have fewer; or steps: their number, all of one size but the last, or,
    if even, ending at equal shares of the pixels rounded down. deletes_to, inserts_into: names in SUBSTRATES. ties: of
    pixels of equal value, which goes first. by_fraction: the area under a curve is over the share of pixels, else over
    the steps. frame: what of a picture the model sees, a name in `frames.FRAMES`. excludes: maps that the original
    leaves out, without a word or with. Each has its source in `source`.
    """

    name: str
    source: str
    frame: str = "own"
    step: int | None = None
    steps: int | None = None
    even: bool = False
    deletes_to: str = "zeros"
    inserts_into: str = "zeros"
    ties: Ties = "later"
    by_fraction: bool = False
    excludes: tuple[Status, ...] = (Status.NOT_FINITE,)

    def counts(self, pixels: int) -> np.ndarray:
        """How many pixels are changed at each point of a curve, from 0 to all: (n + 1,) int."""
        if self.even and self.steps:
            return np.floor(np.linspace(0, pixels, self.steps + 1)).astype(int)
        step = self.step or -(-pixels // (self.steps or 1))
        return np.array([*range(0, pixels, step), pixels])


_RISE = FlippingPreset(
    name="rise",
    source="RISE, arXiv 1806.07421; github.com/eclique/RISE at d91ea00, evaluation.py, in batches",
    frame="whole",
    step=1792,
    inserts_into="blur_11",
)
_GROUP_CAM = FlippingPreset(
    name="group_cam",
    source="Group-CAM, arXiv 2103.13859; github.com/wofmanaf/Group-CAM at ffd807b, ins_del_gc.py",
    frame="eighth",
    step=448,
    inserts_into="blur_51",
    excludes=(Status.NOT_FINITE, Status.CONSTANT),
)

FLIPPING_PRESETS = {
    preset.name: preset
    for preset in (
        _RISE,
        replace(_RISE, name="rise_single", source=f"{_RISE.source.removesuffix('in batches')}one image", step=224),
        _GROUP_CAM,
        replace(_GROUP_CAM, name="group_cam_2021", source=_GROUP_CAM.source.replace("ffd807b", "80836e6"), step=1792),
        FlippingPreset(
            name="torch_cam",
            source="github.com/frgfm/torch-cam at f44afef, DeletionInsertionMetric with softmax",
            steps=20,
            ties="earlier",
            by_fraction=True,
        ),
        FlippingPreset(
            name="xplique",
            source="github.com/deel-ai/xplique at 0c90fa4, Deletion and Insertion with softmax",
            steps=10,
            even=True,
        ),
    )
}


Kind = Literal["deletion", "least first", "insertion"]  # least first: deletion that ends with the most important pixels


def deletion(
    model: Any,
    images: ArrayLike,
    maps: ArrayLike,
    targets: Targets | None = None,
    *,
    preset: str | FlippingPreset = "rise",
    chunk: int = CHUNK,
) -> Array:
    """Confidence while pixels go, the most important first, from the clean image to none: (B, n + 1) float32.

    preset: a name in FLIPPING_PRESETS. Raises ValueError for an unknown preset, a map that is not finite, and maps,
    targets and images that do not fit. RISE, arXiv 1806.07421, section 4.2.
    """
    return _curves(model, images, maps, targets, preset, chunk, "deletion")[0]


def insertion(
    model: Any,
    images: ArrayLike,
    maps: ArrayLike,
    targets: Targets | None = None,
    *,
    preset: str | FlippingPreset = "rise",
    chunk: int = CHUNK,
) -> Array:
    """Confidence while pixels come, the most important first, from the substrate to the clean image: (B, n + 1).

    As `deletion`.
    """
    return _curves(model, images, maps, targets, preset, chunk, "insertion")[0]


def deletion_and_insertion(
    model: Any,
    images: ArrayLike,
    maps: ArrayLike,
    targets: Targets | None = None,
    *,
    preset: str | FlippingPreset = "rise",
    chunk: int = CHUNK,
) -> tuple[Array, Array]:
    """Both curves, (B, n + 1) each, by one loop: compiled in half the time. As `deletion`."""
    deleted, inserted = _curves(model, images, maps, targets, preset, chunk, "deletion", "insertion")
    return deleted, inserted


def relevance_gain(
    model: Any,
    images: ArrayLike,
    maps: ArrayLike,
    targets: Targets | None = None,
    *,
    preset: str | FlippingPreset = "rise",
    chunk: int = CHUNK,
) -> Array:
    """Area under the deletion curve that ends with the most important pixels, minus that which begins with them: (B,).

    Rankings by it hardly depend on substrate and step. Raises ValueError as `deletion`. Symmetric relevance gain,
    Bluecher, Vielhaben and Strodthoff, TMLR 2024 (openreview bIiLXdtUVM).
    """
    rule = chosen_convention(preset, FLIPPING_PRESETS, "preset")
    curves = _curves(model, images, maps, targets, rule, chunk, "deletion", "least first")
    along = fractions(jnp.shape(images)[1:3], preset=rule) if rule.by_fraction else None
    most_first, least_first = (auc(curve, fractions=along) for curve in curves)
    return least_first - most_first


def fractions(size: Sequence[int], *, preset: str | FlippingPreset = "rise") -> np.ndarray:
    """The share of an image's pixels (H, W) that are changed at each point of a preset's curve: (n + 1,) float32.

    Raises ValueError for an unknown preset.
    """
    rule, (height, width) = chosen_convention(preset, FLIPPING_PRESETS, "preset"), size
    return (rule.counts(height * width) / (height * width)).astype(np.float32)


def auc(curves: ArrayLike, *, fractions: ArrayLike | None = None) -> Array:
    """Areas under curves (..., n + 1) by trapezoids, of a width of 1 in all: (...).

    fractions: where the points lie, (n + 1,), from 0 to 1; as far from each other unless given. Raises ValueError for
    curves of less than two points, and fractions of another number.
    """
    y = jnp.asarray(curves)
    if not y.ndim or y.shape[-1] < 2:
        raise ValueError(f"curves have shape {y.shape}, expected (..., n + 1) with n at least 1")
    if fractions is None:
        return (y.sum(-1) - y[..., 0] / 2 - y[..., -1] / 2) / (y.shape[-1] - 1)
    along = jnp.asarray(fractions, y.dtype)
    if along.shape != y.shape[-1:]:
        raise ValueError(f"fractions have shape {along.shape}, expected {y.shape[-1:]}, a point of the curves each")
    return jnp.trapezoid(y, along)


def _curves(
    model: Any,
    images: ArrayLike,
    maps: ArrayLike,
    targets: Targets | None,
    preset: str | FlippingPreset,
    chunk: int,
    *kinds: Kind,
) -> list[Array]:
    rule = chosen_convention(preset, FLIPPING_PRESETS, "preset")
    check_positive(chunk=chunk)
    x, known = checked_images(model, images, targets)
    curves: list[Array] = run(_flip, model, x, checked_maps(maps, x), known, rule=rule, chunk=chunk, kinds=kinds)
    return curves


def _flip(
    model: Any, images: Array, maps: Array, targets: Any, *, rule: FlippingPreset, chunk: int, kinds: tuple[Kind, ...]
) -> list[Array]:
    """A curve (B, n + 1) of each kind. All are versions of the images, of which the first is clean, in one loop."""
    batch, height, width, _ = images.shape
    counts = rule.counts(height * width)
    if targets is None:
        _, targets = predicted(model, images, targets, chunk)
    large = at_size(maps, (height, width))
    most_first = places(large.reshape(batch, -1), ties=rule.ties).reshape(large.shape)
    inserted, reversed_ = (np.array([kind == it for kind in kinds]) for it in ("insertion", "least first"))
    becomes = (rule.inserts_into if it else rule.deletes_to for it in inserted)
    substrates = jnp.concatenate([SUBSTRATES[substrate](images) for substrate in becomes])

    kind = np.repeat(np.arange(len(kinds)), len(counts) - 1)
    changed = np.concatenate([counts[:-1] if it else counts[1:] for it in inserted])
    # The clean image comes first: of a deletion, whatever the first kind is, nothing is gone.
    numbered = [
        jnp.asarray([first, *rest])
        for first, rest in ((0, kind), (0, changed), (False, inserted[kind]), (False, reversed_[kind]))
    ]

    def version(rows: Array, numbers: Array) -> Array:
        kind, count, shown, last = (values[numbers] for values in numbered)
        place = most_first[rows]
        place = jnp.where(last[:, None, None], height * width - 1 - place, place)
        first = place < count[:, None, None]
        return jnp.where((first == shown[:, None, None])[..., None], images[rows], substrates[kind * batch + rows])

    scores = without_maps(maps, of_versions(model, version, targets, batch, 1 + len(changed), chunk))
    clean, parts = scores[:, :1], jnp.split(scores[:, 1:], len(kinds), axis=1)
    return [
        jnp.concatenate([part, clean] if it else [clean, part], 1) for it, part in zip(inserted, parts, strict=True)
    ]

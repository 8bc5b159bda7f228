"""What confidence is left of an image of which a map shows the important parts alone."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dcls_jax.cam.explanation import Method, explain
from dcls_jax.cam.maps import unit_range
from dcls_jax.cam.masks import chosen_convention, confidences
from dcls_jax.cam.programs import run
from dcls_jax.cam.targets import Targets
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

SPACE = (-2, -1)


@dataclass(frozen=True)
class MaskingPreset:
    """How a map becomes a mask in [0, 1], which multiplies the image in the normalised space of the model's input.

    magnitude: the map's magnitude is taken, else its positive part. resized_first: it gets its range at the image's
    size, else at its own, before it is resized. epsilon: added to what a drop and a gain are divided by. Each has its
    source in `source`.
    """

    name: str
    source: str
    magnitude: bool
    resized_first: bool
    epsilon: float

    def masks(self, maps: Array, size: tuple[int, ...]) -> Array:
        """Masks (B, *size) of maps (B, h, w)."""
        if self.resized_first:
            maps = at_size(maps, size)
        positive = jnp.abs(maps) if self.magnitude else jax.nn.relu(maps)
        masks = unit_range(positive, SPACE, epsilon=1e-8)
        return masks if self.resized_first else at_size(masks, size)


# torch-cam knows no gain: xplique's formula, which is Opti-CAM's, stands in.
MASKING_PRESETS = {
    preset.name: preset
    for preset in (
        MaskingPreset(
            name="torch_cam",
            source="github.com/frgfm/torch-cam at f44afef, ClassificationMetric with softmax",
            magnitude=False,
            resized_first=False,
            epsilon=1e-7,
        ),
        MaskingPreset(
            name="xplique",
            source="github.com/deel-ai/xplique at 0c90fa4, AverageDropMetric and its like with softmax",
            magnitude=True,
            resized_first=True,
            epsilon=1e-8,
        ),
    )
}


def confidence_change(
    model: Any,
    images: ArrayLike,
    maps: ArrayLike,
    targets: Targets | None = None,
    *,
    preset: str | MaskingPreset = "torch_cam",
    chunk: int = CHUNK,
) -> dict[str, Array]:
    """What the confidence y becomes where the image is masked, y': "drop", "increase" and "gain", each (B,) float32.

    drop = max(0, y - y') / y; increase = 1 where y' > y, else 0; gain = max(0, y' - y) / (1 - y). All change with the
    share of the image that a map leaves, so report its mean beside them. preset: a name in MASKING_PRESETS. Raises
    ValueError for an unknown preset, a map that is not finite, and maps, targets and images that do not fit.
    Grad-CAM++, arXiv 1710.11063, section 4.1; gain: Opti-CAM, arXiv 2301.07002.
    """
    rule = chosen_convention(preset, MASKING_PRESETS, "preset")
    check_positive(chunk=chunk)
    x, known = checked_images(model, images, targets)
    return run(_change, model, x, checked_maps(maps, x), known, rule=rule, chunk=chunk)


def _change(
    model: Any, images: Array, maps: Array, targets: Any, *, rule: MaskingPreset, chunk: int
) -> dict[str, Array]:
    output, targets = predicted(model, images, targets, chunk)
    y = confidences(output, targets)
    masked = _masked(images, rule.masks(maps, images.shape[1:3]))
    (after,) = of_versions(model, lambda rows, _: masked[rows], targets, len(images), 1, chunk).T
    changes = {
        "drop": jax.nn.relu(y - after) / (y + rule.epsilon),
        "increase": (after > y).astype(y.dtype),
        "gain": jax.nn.relu(after - y) / (1 - y + rule.epsilon),
    }
    return {name: without_maps(maps, change) for name, change in changes.items()}


def _masked(images: Array, masks: Array) -> Array:
    return images * masks[..., None].astype(images.dtype)


def adcc(
    model: Any,
    images: ArrayLike,
    targets: Targets | None = None,
    *,
    method: str | Method = "grad_cam",
    layer: str | None = None,
    chunk: int = CHUNK,
    **method_options: Any,
) -> dict[str, Array]:
    """The harmonic mean of a method's coherency, 1 - complexity and 1 - drop: "adcc" and the three, each (B,) float32.

    M is the method's map, its positive part with range [0, 1], resized. coherency: (r + 1) / 2, r the correlation of M
    with the map of the image times M, 0 where either is constant; complexity: the mean of M; drop: that of the
    confidence in the image times M, relative. adcc is 0 where a part is. method, layer, method_options: as of
    `dcls_jax.cam.explain`. Raises ValueError for an unknown method, layer or option, and images and targets that do not
    fit. Poppi et al., arXiv 2104.10252; github.com/aimagelab/ADCC at e52dadf, with torch-cam's maps.
    """
    check_positive(chunk=chunk)
    x, known = checked_images(model, images, targets)
    arrays = {name: value for name, value in method_options.items() if isinstance(value, Array | np.ndarray)}
    options = tuple((name, value) for name, value in method_options.items() if name not in arrays)
    return run(_adcc, model, x, known, arrays, method=method, layer=layer, options=options, chunk=chunk)


def _adcc(
    model: Any,
    images: Array,
    targets: Any,
    arrays: dict[str, Array],
    *,
    method: str | Method,
    layer: str | None,
    options: tuple[tuple[str, Any], ...],
    chunk: int,
) -> dict[str, Array]:
    chosen: dict[str, Any] = {"method": method, "layer": layer, **arrays, **dict(options)}
    rule = MASKING_PRESETS["torch_cam"]
    output, targets = predicted(model, images, targets, chunk)
    y = confidences(output, targets)

    def masks_of(images: Array) -> Array:
        maps = explain(model, images, targets, **chosen)
        return rule.masks(maps.astype(jnp.float32), images.shape[1:3])

    masks = masks_of(images)
    masked = _masked(images, masks)
    (after,) = of_versions(model, lambda rows, _: masked[rows], targets, len(images), 1, chunk).T
    parts = {
        "coherency": _coherency(masks, masks_of(masked)),
        "complexity": masks.mean(SPACE),
        "drop": jax.nn.relu(y - after) / jnp.where(y == 0, 1, y),
    }
    good = jnp.stack([parts["coherency"], 1 - parts["complexity"], 1 - parts["drop"]])
    some = (good > 0).all(0)
    return {"adcc": jnp.where(some, 3 / (1 / jnp.where(some, good, 1)).sum(0), 0)} | parts


def _coherency(a: Array, b: Array) -> Array:
    a, b = (m - m.mean(SPACE, keepdims=True) for m in (a, b))
    norms = jnp.sqrt((a**2).sum(SPACE)) * jnp.sqrt((b**2).sum(SPACE))
    return jnp.where(norms > 0, ((a * b).sum(SPACE) / jnp.where(norms > 0, norms, 1) + 1) / 2, 0)

"""A suite's pictures for its report: what people and models look at, in the records that tell the most."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from dcls_jax.cam.programs import run
from dcls_jax.eval import gallery
from dcls_jax.eval.data.clickme import human_maps, picture
from dcls_jax.eval.frames import picture_of
from dcls_jax.eval.gallery import PictureSample
from dcls_jax.eval.stored import Stored
from dcls_jax.eval.study import presented, raw_maps
from dcls_jax.eval.suite.run import Plan, build
from dcls_jax.eval.suite.spec import Evaluation
from dcls_jax.models import Backbone, Transform

WITH_PICTURES = "clickme", "localisation", "faithfulness"  # in this order, of what a suite has


def write(plan: Plan, folder: Path) -> Path | None:
    """Write the gallery of a suite that is done, of one of its evaluations; None where none is of maps.

    Raises as `gallery.write` does.
    """
    chosen = [it for metric in WITH_PICTURES for it in plan.suite.evaluations if it.metric == metric]
    if not chosen:
        return None
    evaluation = chosen[0]
    cells = [cell for cell in plan.cells if cell.evaluation is evaluation]
    results: Sequence[Stored] = plan.results(cells)
    models = {cell.model.called: cell.model for cell in cells}

    @cache
    def model(called: str) -> Backbone:
        return build(models[called])

    def maps(called: str, method: str, image: np.ndarray, label: int) -> Array:
        whole = model(called).transform.whole
        seen = jnp.asarray(whole(Image.fromarray(image)))[None]
        labels = jnp.array([label]) if label >= 0 else None
        return run(_map, model(called), seen, labels, method=method)[0]

    classes = {model.num_classes for model in models.values()}
    return gallery.write(
        folder,
        results,
        _shown(plan.source(evaluation), evaluation, model(cells[0].model.called).transform),
        maps,
        num_classes=classes.pop() if len(classes) == 1 else None,
    )


def _map(model: Any, images: Array, labels: Array | None, *, method: str) -> Array:
    targets = model.head(model.features(images)).argmax(-1) if labels is None else labels
    return presented(raw_maps(model, images, targets, method=method), method=method)


def _shown(source: Any, evaluation: Evaluation, transform: Transform) -> Callable[[int], PictureSample]:
    """Pictures by number, as a model with this transform sees them; those with boxes whole."""

    def sample(index: int) -> PictureSample:
        found = source[index]
        if evaluation.metric == "clickme":
            seen = transform.framed(Image.fromarray(picture(found.image, np.uint8)))
            return PictureSample(np.asarray(seen), human_maps(found.heatmap, (transform,))[0])
        image = picture_of(found.image if hasattr(found, "image") else found[0]).convert("RGB")
        if evaluation.metric == "localisation":
            return PictureSample(np.asarray(image), boxes=found.region.boxes)
        return PictureSample(np.asarray(transform.framed(image)))

    return sample

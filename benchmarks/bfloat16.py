"""How far bfloat16 moves what float32 gives: logits, maps and scores, of the sample's models and the golden cases.

    python benchmarks/bfloat16.py

Five minutes on two CPU cores, which have no bfloat16 of their own. docs/evaluation.md has the table.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcls_jax import freeze
from dcls_jax.eval import clickme, demo
from dcls_jax.eval.rank import spearman
from dcls_jax.eval.study import STUDY, raw_study_maps
from dcls_jax.models import Backbone

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import golden


class Moved(NamedTuple):
    """A row of the table: differences from float32, and of how many pictures."""

    name: str
    logits: float  # the largest difference, as a share of the largest logit
    classes: float  # the share of pictures of the same most probable class
    maps: float  # of Grad-CAM, the mean of each picture's largest difference, as a share of its largest value
    ranks: tuple[float, float] | None  # Spearman's correlation of both maps, mean and least; None of four cells
    pictures: int


@jax.jit
def given(model: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits, and raw Grad-CAM maps of the first class of each image, which both dtypes explain."""
    return freeze(model)(images).astype(jnp.float32), raw_study_maps(
        freeze(model), images, jnp.zeros(len(images), int), method="grad_cam"
    )


def moved(name: str, exact: Backbone, images: np.ndarray) -> Moved:
    """What becomes of a model in bfloat16, with the same weights."""
    half = nnx.clone(exact)
    half.set_attributes(dtype="bfloat16", raise_if_not_found=False)
    (logits, maps), (half_logits, half_maps) = (map(np.asarray, given(model, images)) for model in (exact, half))
    of_maps = np.abs(maps - half_maps).max((1, 2)) / np.abs(maps).max((1, 2))
    ranks = np.asarray(jax.vmap(spearman)(maps, half_maps)) if maps[0].size > 4 else None
    return Moved(
        name,
        float(np.abs(logits - half_logits).max() / np.abs(logits).max()),
        float((logits.argmax(-1) == half_logits.argmax(-1)).mean()),
        float(of_maps.mean()),
        None if ranks is None else (float(ranks.mean()), float(ranks.min())),
        len(images),
    )


def rows() -> Iterable[Moved]:
    """Of all models: the sample's on its pictures, the golden cases' on theirs."""
    pictures = np.stack([picture for picture, _ in demo.sample_pictures()])
    for name, model in demo.sample_models().items():
        seen = (pictures / 255 - np.array(model.transform.mean)) / np.array(model.transform.std)
        yield moved(f"sample: {name}", model, seen.astype(np.float32))
    for name in golden.CASES:
        model, expected = golden.load(name)
        yield moved(name, model, expected["image"])


def scores() -> Iterable[tuple[str, str, Sequence[clickme.Result]]]:
    """Alignment on the sample in both dtypes, by model and method."""
    for name in demo.NAMES:
        for method in STUDY:
            of_dtypes = [
                clickme.evaluate(
                    demo.sample_model(name, dtype=dtype), demo.SAMPLE, method=method, protocol="aligned", progress=False
                )
                for dtype in ("float32", "bfloat16")
            ]
            yield name, method, of_dtypes


def print_head(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"on {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print_head("model", "pictures", "logits", "same class", "Grad-CAM", "its ranks, mean", "least")
    for row in rows():
        ranks = " | ".join(f"{rank:.4f}" for rank in row.ranks) if row.ranks else " | "
        print(f"| {row.name} | {row.pictures} | {row.logits:.1e} | {row.classes:.3f} | {row.maps:.1e} | {ranks} |")
    print()
    print_head("model", "method", "alignment, float32", "bfloat16", "largest difference of a picture")
    for name, method, (exact, half) in scores():
        apart = np.nanmax(np.abs(exact.per_image - half.per_image))
        print(f"| {name} | {method} | {exact.alignment:.4f} | {half.alignment:.4f} | {apart:.4f} |")


if __name__ == "__main__":
    main()

"""Deletion and insertion as RISE's preset has them, beside the forward passes that they need and beside PyTorch.

    python benchmarks/faithfulness.py [--model convnext_tiny] [--dcls] [--images 2] [--rounds 2]

RISE's preset makes 2 x 29 forward passes an image: "bare" is the time of 58, in a program that does nothing else, as
many images at a time. In PyTorch, on the same model with the same weights: (a) the loop of Group-CAM's script, one
image and one step at a time, pixels moved by NumPy; (b) what a careful user could write, all steps of a curve in one
batch, channels_last. Both without a graph for gradients, which the script makes. Needs the parity extra. Times are
minima over rounds in which all take turns; the last column is the largest difference of ours to (a).
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, minima

from dcls_jax import freeze
from dcls_jax.cam.model import output_of
from dcls_jax.cam.programs import run
from dcls_jax.eval import faithfulness
from dcls_jax.eval.faithfulness import FLIPPING_PRESETS, SUBSTRATES
from dcls_jax.eval.scoring import CHUNK
from dcls_jax.models import create_model, load_weights

sys.path.insert(0, str(Path(__file__).parents[1]))

RULE = FLIPPING_PRESETS["rise"]
PASSES = 58
COLUMNS = ("model", "bare", "ours", "ours/bare", "(a) script", "(b) careful", "(a)/ours", "(b)/ours", "difference")


def forward(model: Any, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(output_of(model, images))


def bare(model: Any, size: int, count: int) -> Callable[[], object]:
    """As many forward passes as an image needs, for `count` images, as chunks of one size."""
    chunks = -(-PASSES * count // CHUNK)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((-(-PASSES * count // chunks), size, size, 3), np.float32))

    def passes() -> object:
        for _ in range(chunks):
            y = jax.block_until_ready(run(forward, model, x))
        return y

    return passes


def ours(model: Any, images: jax.Array, maps: jax.Array) -> tuple[jax.Array, jax.Array]:
    return faithfulness.deletion(model, images, maps), faithfulness.insertion(model, images, maps)


def script(model: Any, images: np.ndarray, substrate: np.ndarray, maps: np.ndarray) -> list[np.ndarray]:
    """Deletion and insertion curves (B, n + 1), one image and one step at a time."""
    import torch

    curves = []
    for start, finish in ((images, np.zeros_like(images)), (substrate, images)):
        scores = np.empty((len(images), len(RULE.counts(maps[0].size))), np.float32)
        for i, importance in enumerate(maps):
            pixels, final = (torch.tensor(each[i : i + 1].transpose(0, 3, 1, 2)) for each in (start, finish))
            label = int(model(torch.tensor(images[i : i + 1].transpose(0, 3, 1, 2))).argmax())
            order = np.argsort(importance.ravel(), kind="stable")[::-1]
            flat, last = (x.contiguous().numpy().reshape(1, 3, -1) for x in (pixels, final))
            shown = torch.from_numpy(flat).reshape(pixels.shape)
            for step in range(scores.shape[1]):
                scores[i, step] = torch.softmax(model(shown), 1)[0, label]
                moved = order[RULE.step * step : RULE.step * (step + 1)]
                flat[0][:, moved] = last[0][:, moved]
        curves.append(scores)
    return curves


def careful(model: Any, images: np.ndarray, substrate: np.ndarray, maps: np.ndarray) -> list[np.ndarray]:
    """The same, with all steps of a curve in one batch, built from ranks."""
    import torch

    x, blurred = (torch.tensor(each.transpose(0, 3, 1, 2).copy()) for each in (images, substrate))
    counts = torch.tensor(RULE.counts(maps[0].size))[:, None, None, None]
    curves = np.empty((2, len(images), len(counts)), np.float32)
    for i, importance in enumerate(maps):
        order = torch.tensor(np.argsort(importance.ravel(), kind="stable")[::-1].copy())
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order))
        first = ranks.reshape(1, 1, *importance.shape) < counts
        deleted = torch.where(first, 0.0, x[i : i + 1]).contiguous(memory_format=torch.channels_last)
        scores = torch.softmax(model(deleted), 1)
        label = int(scores[0].argmax())
        curves[0, i] = scores[:, label]
        inserted = torch.where(first, x[i : i + 1], blurred[i : i + 1]).contiguous(memory_format=torch.channels_last)
        curves[1, i] = torch.softmax(model(inserted), 1)[:, label]
    return list(curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--dcls", action="store_true")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    import torch

    from tests.torch_models import constructed, torch_model

    original = torch_model(given.model, given.dcls, seed=0)
    model = freeze(load_weights(create_model(given.model, dcls=given.dcls), original.state_dict()))
    peer = constructed(original).to(memory_format=torch.channels_last)
    size = model.transform.crop
    rng = np.random.default_rng(0)
    images = rng.standard_normal((given.images, size, size, 3), np.float32)
    maps = np.asarray(
        jax.image.resize(rng.standard_normal((given.images, 7, 7), np.float32), images.shape[:3], "linear")
    )
    substrate = np.asarray(SUBSTRATES[RULE.inserts_into](jnp.asarray(images)))
    candidates: dict[str, Callable[[], Any]] = {
        "bare": bare(model, size, given.images),
        "ours": partial(ours, model, jnp.asarray(images), jnp.asarray(maps)),
        "a": partial(script, peer, images, substrate, maps),
        "b": partial(careful, peer, images, substrate, maps),
    }
    with torch.no_grad():
        difference = np.abs(np.stack(candidates["ours"]()) - np.stack(candidates["a"]())).max()
        seconds = minima(candidates, rounds=given.rounds)
    times = {name: 1e3 * value / given.images for name, value in seconds.items()}
    print(f"RISE's deletion and insertion, ms per image, {given.images} images, {size}x{size}, float32; {machine()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    row = (
        f"{given.model}{' dcls' if given.dcls else ''}",
        *(f"{times[name]:.0f}" for name in ("bare", "ours")),
        f"{times['ours'] / times['bare']:.2f}x",
        *(f"{times[name]:.0f}" for name in ("a", "b")),
        *(f"{times[name] / times['ours']:.2f}x" for name in ("a", "b")),
        f"{difference:.0e}",
    )
    print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()

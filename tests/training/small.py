"""A small training run, for tests in this process and, as a program, in others."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from dcls_jax import Conv, Dcls2d, DclsConfig, Positions
from dcls_jax.training import Recipe
from dcls_jax.training.augmentation import Augmentation
from dcls_jax.training.data import Batch, Reading, Rows, batches
from dcls_jax.training.loop import Plan, train
from dcls_jax.training.rand_augment import RandAugment
from dcls_jax.training.step import Parts, State, data_mesh, initial_state, make_step, model_of, parts_of

CLASSES, SIDE = 4, 16
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Sample(NamedTuple):
    image: np.ndarray
    label: int


class Stripes:
    """Pictures of stripes, whose direction and width tell the class."""

    def __len__(self) -> int:
        return 70

    def __getitem__(self, index: int) -> Sample:
        rng, label = np.random.default_rng(index), index % CLASSES
        wave = np.sin(np.arange(20) * (0.7 if label < 2 else 1.6) + rng.uniform(0, 6))
        image = wave[:, None] + np.zeros(20) if label % 2 else wave + np.zeros((20, 1))
        noise = rng.normal(0, 0.3, (20, 20, 3))
        return Sample((127 + 90 * (image[..., None] + noise)).clip(0, 255).astype(np.uint8), label)


class Net(nnx.Module):
    """A stem, a DCLS layer with positions that it owns, stochastic depth, batch statistics, and a head."""

    def __init__(self, *, drop: float = 0.2, rngs: nnx.Rngs) -> None:
        self.stem = Conv(3, 8, (2, 2), stride=2, bias=False, rngs=rngs)  # which the norm would take away
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.positions = Positions((8, 1, 3), (5, 5), "v1", rngs=rngs)
        self.mix = Dcls2d(8, 8, 3, padding=2, dilated_kernel_size=5, groups=8, shared_positions=True, rngs=rngs)
        self.drop = nnx.Dropout(drop, broadcast_dims=(1, 2, 3), rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.stem(x))
        x = x + self.drop(jax.nn.gelu(self.mix(x, self.positions)))
        return self.fc(x.mean((1, 2)))


RECIPE = Recipe(
    model="net",
    dcls=DclsConfig(3, 5, "v1"),
    epochs=8,
    warmup_epochs=1,
    batch_size=16,
    learning_rate=3e-3,
    minimum=0.0,
    weight_decay=0.05,
    drop_path_rate=0.2,
    repulsion_from=2,
    ema=0.9,
    size=SIDE,
)


@dataclass
class Run:
    """One run of RECIPE on stripes; `changes` are of the recipe."""

    folder: Path
    steps: int = 20
    accumulate: int = 1
    recipe: Recipe = RECIPE
    drop: float = 0.2
    augment: Augmentation = Augmentation(SIDE, rand_augment=RandAugment(), scale=(0.5, 1))  # noqa: RUF009  (frozen)
    save_every: int = 6
    frozen: tuple[str, ...] = ()

    def __call__(self, dies_at: int = -1, **options: Any) -> tuple[Parts, State]:
        parts = parts_of(Net(drop=self.drop, rngs=nnx.Rngs(0)), self.frozen)
        rows = Rows(self.recipe.batch_size, self.accumulate, jax.process_count(), jax.process_index())
        plan = Plan(
            steps=self.steps,
            steps_per_epoch=4,
            batch_size=16,
            log_every=4,
            save_every=self.save_every,
            evaluate_every=options.pop("evaluate_every", 0),
        )
        optimise, mesh = self.recipe.optimiser(4, frozen=self.frozen), data_mesh()
        step = make_step(
            parts, optimise, self.recipe, num_classes=CLASSES, mean=MEAN, std=STD, steps_per_epoch=4, mesh=mesh
        )

        def read(start: int, stop: int) -> Iterator[Batch]:
            pictures = batches(
                Stripes(), self.augment, rows, seed=self.recipe.seed, start=start, stop=stop, reading=Reading(2)
            )
            for number, batch in enumerate(pictures, start):
                if number == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        state = initial_state(parts, optimise, average=self.recipe.ema is not None)
        rate = self.recipe.schedule(4)
        return parts, train(step, state, read, plan, self.folder, mesh=mesh, learning_rate=rate, **options)


def leaves(state: State) -> dict[str, np.ndarray]:
    """All arrays of a state by name."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def evaluated(parts: Parts, state: State) -> dict[str, float]:
    """How many of the stripes the model names."""
    model, stripes = model_of(parts, state), Stripes()
    images = np.stack([stripes[i].image[2:18, 2:18] for i in range(len(stripes))])
    logits = np.asarray(model((images.astype(np.float32) / 255 - 0.5) / 0.25))
    labels = np.array([stripes[i].label for i in range(len(stripes))])
    return {"top1": float((logits.argmax(-1) == labels).mean()), "top5": 1.0}


def main(folder: str, dies_at: str, port: str = "", process: str = "") -> None:
    if port:
        jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    _, state = Run(Path(folder))(dies_at=int(dies_at))
    if jax.process_index() == 0:
        np.savez(Path(folder) / "end.npz", **leaves(state))
    print(json.dumps({"devices": jax.device_count()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

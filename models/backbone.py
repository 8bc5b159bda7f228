"""What every model here can do: run up to a named layer, and on from it."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import jax
from flax import nnx
from jax import Array
from jax.nn.initializers import Initializer

from dcls_jax.layers import Positions
from dcls_jax.models.checkpoints import Rename
from dcls_jax.models.transform import Transform

Layer = tuple[str, Callable[[Array], Array]]


# What several families initialise by. Their originals truncate it at two, a hundred standard deviations out.
small_normal = jax.nn.initializers.normal(0.02)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of the blocks of each stage, growing linearly with depth from 0 to `rate`."""
    last = max(1, sum(depths) - 1)
    rates = [rate * i / last for i in range(sum(depths))]
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


def stochastic_depth(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Drops a residual branch of whole pictures in training mode (arXiv 1603.09382); nothing in evaluation mode."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=True, rngs=rngs if rate else None)


def each_pixel(function: Callable[[Array], Array], x: Array) -> Array:
    """A function of the channels of each pixel, for images (..., C).

    Where all pixels lie along one axis, XLA's CPU backend takes half the time for gradients of matrix products; a TPU,
    whose memory is laid out by rows of images, has to copy them.
    """
    if jax.default_backend() != "cpu":
        return function(x)
    y = function(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def classifier(
    in_dim: int, num_classes: int, rngs: nnx.Rngs, kernel_init: Initializer, bias_init: Initializer | None = None
) -> nnx.Linear | None:
    """The linear layer that ends a model; None, and the model gives what was pooled, for no classes."""
    zeros = jax.nn.initializers.zeros
    if num_classes == 0:
        return None
    return nnx.Linear(in_dim, num_classes, kernel_init=kernel_init, bias_init=bias_init or zeros, rngs=rngs)


class Stage(nnx.Module):
    """Blocks of equal width, after a layer that shrinks the image, if there is one.

    With DCLS, all blocks place their kernel elements at the stage's `positions`, which they are handed at each call.
    """

    downsample: nnx.Module | None
    positions: Positions | None
    blocks: nnx.List

    def _layers(self) -> list[Layer]:
        before: list[Layer] = [] if self.downsample is None else [("downsample", cast(Callable, self.downsample))]
        return [
            *before,
            *((f"blocks.{j}", partial(block, positions=self.positions)) for j, block in enumerate(self.blocks)),
        ]

    def __call__(self, x: Array) -> Array:
        """x (B, H, W, C) -> (B, H', W', C')."""
        for _, layer in self._layers():
            x = layer(x)
        return x


class Backbone(nnx.Module):
    """A classifier as a chain of named layers and a classification head, which can be cut at any layer.

    A cut is named "stem", "stages.i.blocks.j" or as `layer_names` lists it; "stages.i" is the last layer of a stage and
    "features", the default, the last of all: the activation that the study explains. A cut names its layer's output.
    Subclasses have a `stem`, `stages`, a classifier `fc`, or None for a model without, and `pool`.
    """

    transform: Transform
    checkpoint_renames: tuple[Rename, ...]  # in order, from the keys of published state dicts to ours
    stem: nnx.Module
    stages: nnx.List
    fc: nnx.Module | None

    def _layers(self) -> list[Layer]:
        """The layers in order, each (B, H, W, C) -> (B, H', W', C')."""
        stages = [
            (f"stages.{i}.{name}", layer) for i, stage in enumerate(self.stages) for name, layer in stage._layers()
        ]
        return [("stem", cast(Callable, self.stem)), *stages]

    def pool(self, features: Array) -> Array:
        """What the classifier sees: features (B, h, w, C) -> (B, C')."""
        raise NotImplementedError

    def classify(self, features: Array) -> Array:
        """Pooling and classifier: features (B, h, w, C) -> logits (B, num_classes); without one, what was pooled."""
        pooled = self.pool(features)
        return pooled if self.fc is None else cast(Callable, self.fc)(pooled)

    @property
    def chain(self) -> list[str]:
        """The names of the layers from images to features, each once."""
        return [name for name, _ in self._layers()]

    def layer_names(self) -> list[str]:
        """Every name by which the model can be cut."""
        return [*self.chain, *(f"stages.{i}" for i in range(len(self.stages))), "features"]

    def features(self, images: Array, upto: str = "features") -> Array:
        """Activation at the cut `upto`: images (B, H, W, 3), normalised -> (B, h, w, C). ValueError: no such cut."""
        return self.intermediates(images, (upto,))[upto]

    def intermediates(self, images: Array, cuts: Sequence[str] | None = None) -> dict[str, Array]:
        """Activations at several cuts, of every stage unless others are given, in one pass that ends with the last.

        images (B, H, W, 3), normalised -> (B, h, w, C) each, by cut. ValueError: no such cut.
        """
        cuts = [f"stages.{i}" for i in range(len(self.stages))] if cuts is None else cuts
        after = {cut: self._index_after(cut) for cut in cuts}
        x: Array = images
        found: dict[str, Array] = {}
        for index, (_, layer) in enumerate(self._layers()[: max(after.values(), default=0)], 1):
            x = layer(x)
            found |= {cut: x for cut in cuts if after[cut] == index}
        return {cut: found[cut] for cut in cuts}

    def head(self, activations: Array, start: str = "features") -> Array:
        """Logits (B, num_classes) from the activation (B, h, w, C) at the cut `start`. ValueError: no such cut."""
        x = activations
        for _, layer in self._layers()[self._index_after(start) :]:
            x = layer(x)
        return self.classify(x)

    def __call__(self, images: Array) -> Array:
        """Logits: images (B, H, W, 3), normalised -> (B, num_classes)."""
        return self.head(self.features(images))

    def _index_after(self, cut: str) -> int:
        names = self.chain
        if cut == "features":
            return len(names)
        indices = [i + 1 for i, name in enumerate(names) if name == cut or name.startswith(f"{cut}.")]
        if not indices or cut not in self.layer_names():
            nearest = difflib.get_close_matches(cut, self.layer_names(), n=5, cutoff=0)
            raise ValueError(f"no layer {cut!r} in {type(self).__name__}; the nearest are {', '.join(nearest)}")
        return indices[-1]

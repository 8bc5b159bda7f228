"""What every model here can do: run up to a named layer, and on from it."""

import difflib
from collections.abc import Callable, Sequence

from flax import nnx
from jax import Array

from dcls_jax.models.preprocess import Transform

Layer = tuple[str, Callable[[Array], Array]]


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of the blocks of each stage, growing linearly with depth from 0 to `rate`."""
    last = max(1, sum(depths) - 1)
    rates = [rate * i / last for i in range(sum(depths))]
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


def stochastic_depth(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Drops a residual branch of whole pictures in training mode (arXiv 1603.09382); nothing in evaluation mode."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=True, rngs=rngs if rate else None)


class Backbone(nnx.Module):
    """A classifier as a chain of named layers and a classification head, which can be cut at any layer.

    A cut is named "stem", "stages.i.blocks.j" or as `layer_names` lists it; "stages.i" is the last layer of a stage and
    "features", the default, the last of all: the activation that the study explains. Subclasses define `layers` and
    `classify`; a cut names the output of its layer.
    """

    transform: Transform
    # (pattern, replacement), applied in order to the keys of a published state dict; see models/checkpoints.py. A third
    # pattern limits a rename to state dicts with a key that matches it.
    checkpoint_renames: tuple[tuple[str, ...], ...]

    def layers(self) -> list[Layer]:
        """The layers in order, each (B, H, W, C) -> (B, H', W', C')."""
        raise NotImplementedError

    def classify(self, features: Array) -> Array:
        """Global pooling and classifier: features (B, h, w, C) -> logits (B, num_classes)."""
        raise NotImplementedError

    def layer_names(self) -> list[str]:
        """Every name by which the model can be cut."""
        names = [name for name, _ in self.layers()]
        stages = dict.fromkeys(".".join(name.split(".")[:2]) for name in names if name.startswith("stages."))
        return [*names, *stages, "features"]

    def features(self, images: Array, upto: str = "features") -> Array:
        """Activation at the cut `upto`: images (B, H, W, 3), normalised -> (B, h, w, C). ValueError: no such cut."""
        x = images
        for _, layer in self.layers()[: self._index_after(upto)]:
            x = layer(x)
        return x

    def head(self, activations: Array, start: str = "features") -> Array:
        """Logits (B, num_classes) from the activation (B, h, w, C) at the cut `start`. ValueError: no such cut."""
        x = activations
        for _, layer in self.layers()[self._index_after(start) :]:
            x = layer(x)
        return self.classify(x)

    def __call__(self, images: Array) -> Array:
        """Logits: images (B, H, W, 3), normalised -> (B, num_classes)."""
        return self.head(self.features(images))

    def _index_after(self, cut: str) -> int:
        names = [name for name, _ in self.layers()]
        if cut == "features":
            return len(names)
        indices = [i + 1 for i, name in enumerate(names) if name == cut or name.startswith(f"{cut}.")]
        if not indices or cut not in self.layer_names():
            nearest = difflib.get_close_matches(cut, self.layer_names(), n=5, cutoff=0)
            raise ValueError(f"no layer {cut!r} in {type(self).__name__}; the nearest are {', '.join(nearest)}")
        return indices[-1]

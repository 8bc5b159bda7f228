"""Pictures of learned spacings: where a model's elements lie, and what one of its features sees."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from matplotlib import colormaps

from dcls_jax.cam.grids import Bar, Grid
from dcls_jax.compilation import compiler_options
from dcls_jax.freezing import dcls_layers
from dcls_jax.kernel import construct_kernel
from dcls_jax.layers import Dcls, Positions
from dcls_jax.models import Backbone
from dcls_jax.modules import modules_by_path

_COLOURS = "magma"
_PIXELS = 224  # of a panel, about
_IMAGES = 8  # of noise, over which a receptive field is the mean
_TINY = np.finfo(np.float32).tiny


def density(positions: Positions, weights: Sequence[Array] = ()) -> np.ndarray:
    """How many elements of a kernel lie in each cell, the mean over all kernels: (kh, kw) float32.

    Spread over cells as the kernels' own version spreads them, so that it sums to the number of elements. weights: of
    layers (out, in/groups, count), by whose magnitude elements count instead, the mean over layers.
    """
    shape = positions.P.shape[1:]
    counted = [jnp.abs(weight) for weight in weights] or [jnp.ones(shape, jnp.float32)]
    width = None if positions.SIG is None else positions.SIG[...]
    kernels = [
        construct_kernel(
            weight,
            positions.P[...],
            width,
            dilated_kernel_size=positions.dilated_kernel_size,
            version=positions.version,
        )
        for weight in counted
    ]
    return np.asarray(jnp.stack(kernels).mean((0, 1, 2)))


def spread(positions: Positions) -> float:
    """How far elements lie from the centre, root mean square, in cells."""
    return float(jnp.sqrt(jnp.square(positions.P[...]).sum(0).mean()))


def places(model: nnx.Module) -> dict[str, tuple[Positions, list[tuple[str, Dcls]]]]:
    """A model's positions in two dimensions, by the module that owns them, with the names of the layers that use them.

    Raises ValueError for a model that has none.
    """
    modules = modules_by_path(model)
    found: dict[str, tuple[Positions, list[tuple[str, Dcls]]]] = {}
    for path, layer, owner in dcls_layers(model):
        positions = cast(Positions, modules[owner])
        if len(positions.dilated_kernel_size) == 2:
            name = ".".join(map(str, owner[:-1])) or ".".join(map(str, owner))
            found.setdefault(name, (positions, []))[1].append((".".join(map(str, path)), layer))
    if not found:
        raise ValueError("the model has no learned positions in two dimensions: it is one without DCLS, or frozen")
    return found


def receptive_field(model: Backbone, *, images: int = _IMAGES, seed: int = 0) -> np.ndarray:
    """What the features in the middle see: (side, side) float32, the largest 1.

    The magnitude of the gradient of their sum over channels, by the pixels of pictures of noise N(0, 1), its mean over
    pictures and colours (arXiv 1701.04128).
    """
    graph, state = nnx.split(model)
    side = model.transform.crop

    def middle(image: Array, state: Any) -> Array:
        features = nnx.merge(graph, state).features(image[None])[0]
        return features[features.shape[0] // 2, features.shape[1] // 2].sum()

    @jax.jit
    def gradients(key: Array, state: Any) -> Array:
        noise = jax.random.normal(key, (images, side, side, 3))
        of_each = jax.lax.map(lambda image: jnp.abs(jax.grad(middle)(image, state)), noise)
        return of_each.mean((0, -1))

    key = jax.random.key(seed)
    field = np.asarray(gradients.lower(key, state).compile(compiler_options())(key, state))
    return field / max(field.max(), _TINY)


def positions_grid(models: Mapping[str, Backbone], *, fields: bool = True) -> Grid:
    """Models, in rows by their titles, x what owns positions: where elements lie; and the receptive field beside.

    Several rows are the movement of one model's elements in training. Brightness is the share of the column's largest,
    of receptive fields its square root. Raises ValueError for models whose positions do not have the same owners.
    """
    found = {title: places(model) for title, model in models.items()}
    owners = [*next(iter(found.values()))]
    for title, of_model in found.items():
        if [*of_model] != owners:
            raise ValueError(f"{title} has positions in {', '.join(of_model)}, expected {', '.join(owners)}")
    shown = [[of_model[owner][0] for owner in owners] for of_model in found.values()]
    densities = [[density(positions) for positions in row] for row in shown]
    largest = np.max([[values.max() for values in row] for row in densities], axis=0)
    rows = [[_coloured(it / top) for it, top in zip(row, largest, strict=True)] for row in densities]
    notes = [[f"{spread(positions):.2f} cells from the centre" for positions in row] for row in shown]
    if fields:
        for row, note, model in zip(rows, notes, models.values(), strict=True):
            field = receptive_field(model)
            row.append(_coloured(np.sqrt(field)))
            note.append(f"half of it in {_half(field):.0%} of the picture")
    titles = [*owners, *(["receptive field"] if fields else [])]
    return Grid(rows, titles, list(models), notes, _bar("share of the largest"))


def layers_grid(model: Backbone) -> Grid:
    """The layers of a model, in columns by what owns their positions: where elements lie, by their magnitude."""
    found = places(model)
    depth = max(len(layers) for _, layers in found.values())
    pictures, notes = [], []
    for owner, layers in found.values():
        of_layers = [density(owner, [layer.weight[...]]) for _, layer in layers]
        blank = [np.full((_PIXELS, _PIXELS, 3), 255, np.uint8)] * (depth - len(layers))
        pictures.append([_coloured(it / max(it.max(), _TINY)) for it in of_layers] + blank)
        notes.append([name for name, _ in layers] + [""] * len(blank))
    rows, names = [*zip(*pictures, strict=True)], [*zip(*notes, strict=True)]
    return Grid(rows, [*found], notes=names, bar=_bar("share of each layer's largest"))


def _half(field: np.ndarray) -> float:
    """The smallest share of pixels that have half of the sum."""
    falling = np.sort(field, axis=None)[::-1].cumsum()
    return float(np.searchsorted(falling, falling[-1] / 2) + 1) / field.size


def _coloured(shares: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (h, w) as squares of colour."""
    zoom = max(1, round(_PIXELS / max(shares.shape)))
    return (255 * colormaps[_COLOURS](shares)[..., :3]).round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)


def _bar(label: str) -> Bar:
    strip = _coloured(np.linspace(0, 1, 256)[:, None])
    return Bar(strip, {0.0: "0", 0.5: "0.5", 1.0: "1"}, label)

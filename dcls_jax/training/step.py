"""One training step, jitted: augmented on the device, forward, backward, optimiser, clamp, average.

A model is split once: its structure is compiled in, its arrays are a `State`. Nothing random is kept: every key is
made of the run's seed and the step, so that a run which goes on draws what it would have drawn.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dcls_jax.compilation import compiler_options
from dcls_jax.training.augmentation import normalised
from dcls_jax.training.averages import ema
from dcls_jax.training.data import Batch
from dcls_jax.training.mixing import random_mix
from dcls_jax.training.positions import clamp_positions, repulsive_loss
from dcls_jax.training.recipes import Recipe

State = dict[str, Any]
# "step": int32; "params", "stats" (batch statistics): nnx.State; "optimiser"; "average": of both, where there is one
Step = Callable[[State, Batch], tuple[State, dict[str, Array]]]
# model in evaluation mode, normalised images (B, H, W, C), labels (B,), key -> images of the same shape
Prepare = Callable[[nnx.Module, Array, Array, Array], Array]


class Parts(NamedTuple):
    """A model in training mode, taken apart: structure, parameters, batch statistics, random keys."""

    graph: Any
    params: nnx.State
    stats: nnx.State
    random: nnx.State


def parts_of(model: nnx.Module, frozen: Sequence[str] = ()) -> Parts:
    """The parts of a model, which is left in training mode, but for modules whose paths match a pattern of `frozen`.

    Those, and all in them, are in evaluation mode: they keep their batch statistics and drop nothing.
    """
    model.train()
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        if any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in frozen):
            module.eval()
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState)
    return Parts(graph, *states)


def initial_state(parts: Parts, optimise: optax.GradientTransformation, *, average: bool) -> State:
    """The state before the first step, in arrays of its own."""
    state: State = {
        "step": np.int32(0),
        "params": parts.params,
        "stats": parts.stats,
        "optimiser": optimise.init(parts.params),
    }
    if average:
        state["average"] = {"params": parts.params, "stats": parts.stats}
    # Through numpy, which knows no weak types: with them the step would compile twice.
    return jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), state)


def model_of(parts: Parts, state: State) -> nnx.Module:
    """The model as it is used: the average where there is one, in evaluation mode, with arrays of its own."""
    source = state.get("average", state)
    own = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), (source["params"], source["stats"]))
    model = nnx.merge(parts.graph, *own, parts.random, copy=True)
    model.eval()
    return model


def data_mesh() -> Mesh:
    """All devices of all processes, for the rows of a batch."""
    return jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, the same in each process, whole on each device."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(whole, np.asarray(leaf)), tree)


def shared_out(batch: Batch, mesh: Mesh) -> Batch:
    """A process's rows of a batch, as its part of the batch on all devices."""
    rows = NamedSharding(mesh, PartitionSpec(None, "rows"))
    return Batch(*(jax.make_array_from_process_local_data(rows, np.asarray(column)) for column in batch))


def make_step(
    parts: Parts,
    optimise: optax.GradientTransformation,
    recipe: Recipe,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps_per_epoch: int,
    prepare: Prepare | None = None,
    mesh: Mesh,
) -> Step:
    """The jitted step (state, batch) -> (state, measures), which takes over the memory of the state it is given.

    Gradients are the mean over the parts of a batch, in float32. mean, std: by which images are normalised, channels'.
    prepare: changes images, before they are mixed, by what the model, without its gradient, finds in them.
    measures: scalars "loss", "fit" (without the repulsive one), "repulsion", "accuracy" (of the largest logit against
    the largest label of mixed pictures), and "finite", whether loss and updates are.
    """
    key = jax.random.key(recipe.seed)

    def loss_of(params: nnx.State, stats: nnx.State, part: Batch, key: Array, step: Array) -> tuple[Array, Any]:
        erase, mix, draw, change = jax.random.split(key, 4)
        images = normalised(part.images, part.erased, erase, mean=mean, std=std)
        if prepare is not None:
            images = prepare(_evaluated(parts, params, stats), images, part.labels, change)
        images, labels = random_mix(
            mix,
            images,
            part.labels,
            num_classes=num_classes,
            mixup_alpha=recipe.mixup_alpha,
            cutmix_alpha=recipe.cutmix_alpha,
            switch=recipe.switch,
            smoothing=recipe.smoothing,
        )
        model = nnx.merge(parts.graph, params, stats, _keys(parts.random, draw), copy=True)
        logits = model(images).astype(jnp.float32)
        fit, repulsion = recipe.fit(logits, labels), repulsive_loss(model)
        loss = fit + recipe.repulsion(step, steps_per_epoch) * repulsion**2
        right = (logits.argmax(-1) == labels.argmax(-1)).mean()
        measures = {"loss": loss, "fit": fit, "repulsion": repulsion, "accuracy": right}
        return loss, (nnx.state(model, nnx.BatchStat), measures)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        params, number = state["params"], state["step"]
        keys = jax.random.split(jax.random.fold_in(key, number), len(batch.labels))

        def add(carry: Any, each: tuple[Batch, Array]) -> tuple[Any, dict[str, Array]]:
            gradients, stats = carry
            found, (stats, measures) = jax.grad(loss_of, has_aux=True)(params, stats, *each, number)
            return (jax.tree.map(jnp.add, gradients, found), stats), measures

        zeros = jax.tree.map(jnp.zeros_like, params)
        (gradients, stats), measures = jax.lax.scan(add, (zeros, state["stats"]), (batch, keys))
        gradients = jax.tree.map(lambda leaf: leaf / len(keys), gradients)
        updates, optimiser_state = optimise.update(gradients, state["optimiser"], params)
        model = nnx.merge(parts.graph, optax.apply_updates(params, updates), stats, parts.random, copy=True)
        clamp_positions(model)
        new = {"params": nnx.state(model, nnx.Param), "stats": stats}
        after = {"step": number + 1, **new, "optimiser": optimiser_state}
        if recipe.ema is not None:
            after["average"] = ema(state["average"], new, recipe.ema)
        measures = {name: values.mean() for name, values in measures.items()}
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((measures["loss"], updates))]
        return after, measures | {"finite": jnp.stack(finite).all()}

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(whole, whole), compiler_options=compiler_options())


def _evaluated(parts: Parts, params: nnx.State, stats: nnx.State) -> nnx.Module:
    """The model in evaluation mode, through which no gradient goes."""
    model = nnx.merge(parts.graph, *jax.lax.stop_gradient((params, stats)), parts.random, copy=True)
    model.eval()
    return model


def _keys(random: nnx.State, key: Array) -> nnx.State:
    """The random state of a model with a key of its own for each place that draws."""
    leaves = nnx.to_flat_state(random)
    fresh = [
        (path, leaf.replace(jax.random.fold_in(key, i) if isinstance(leaf, nnx.RngKey) else jnp.zeros_like(leaf[...])))
        for i, (path, leaf) in enumerate(leaves)
    ]
    return nnx.from_flat_state(fresh)

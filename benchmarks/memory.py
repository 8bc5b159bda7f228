"""How much of a device's memory methods of maps need, from their compiled programs: nothing is run.

python benchmarks/memory.py [--model convnext_tiny] [--dcls] [--batch 64] [--layer stages.0] [--methods rise,...]
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dcls_jax.cam import METHODS, options_of
from dcls_jax.cam.explanation import explain
from dcls_jax.compilation import compiler_options
from dcls_jax.memory import peak
from dcls_jax.models import Backbone, create_model
from dcls_jax.models.create import shapes_only

METHODS_OF_PIXELS = "rise", "occlusion", "smooth_grad", "input_x_gradient", "integrated_gradients", "full_grad"
MANY = "rise", "score_cam", "smooth_grad_cam_pp"  # that see many versions of each image


def shapes_of(name: str, **options: Any) -> Backbone:
    """A model without its numbers."""
    return nnx.eval_shape(lambda: create_model(name, rngs=shapes_only(), **options))


def peak_of(model: Backbone, method: str, *, batch: int, layer: str | None = None) -> int | None:
    """Bytes that a method needs of the maps of a batch of pictures, in chunks as it takes them by itself."""
    graph, state = nnx.split(model)
    size = model.transform.crop
    chosen: dict[str, Any] = {} if method in METHODS_OF_PIXELS else {"layer": layer}

    @jax.jit
    def maps(state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        own = {"key": key} if "key" in options_of(method) else {}
        return explain(nnx.merge(graph, state), images, labels, method=method, **chosen, **own)

    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = maps.lower(state, images, jax.ShapeDtypeStruct((batch,), jnp.int32), key)
    return peak(lowered.compile(compiler_options=dict(compiler_options())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--dcls", action="store_true")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layer", default="stages.0")
    parser.add_argument("--methods", default=",".join(MANY), help=f"some of {', '.join(METHODS)}")
    asked = parser.parse_args()
    model = shapes_of(asked.model, dcls=asked.dcls)
    print(f"{asked.model}, {asked.batch} pictures of {model.transform.crop} pixels, {asked.layer}, float32")
    for method in asked.methods.split(","):
        needed = peak_of(model, method, batch=asked.batch, layer=asked.layer)
        print(f"{method:20} {'not told' if needed is None else f'{needed / 2**30:.2f} GiB'}", flush=True)


if __name__ == "__main__":
    main()

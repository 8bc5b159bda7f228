"""What a model is, without its weights: size, cost, the activation that is explained.

To trace all models takes half a minute, so the table is kept: `python -m dcls_jax.models.describe` writes it anew.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import jaxprs_in_params

from dcls_jax.freezing import freeze
from dcls_jax.models.create import MODELS, create_model, shapes_only
from dcls_jax.models.transform import Transform

_TABLE = Path(__file__).with_name("descriptions.json")


@dataclass(frozen=True)
class Description:
    """A model, for one image: `macs` are multiply-adds of convolutions (dense), linear layers and attention."""

    name: str
    dcls: bool
    parameters: int
    macs: int
    activation: tuple[int, ...]
    transform: Transform
    checkpoint: str


def descriptions() -> list[Description]:
    """Every model, standard and with DCLS, at its own image size, as the kept table has it."""
    return [
        Description(**row | {"activation": tuple(row["activation"]), "transform": _transform(row["transform"])})
        for row in json.loads(_TABLE.read_text())
    ]


def _transform(fields: dict[str, Any]) -> Transform:
    return Transform(**fields | {key: tuple(fields[key]) for key in ("mean", "std")})


def describe(name: str, *, dcls: bool, size: int | None = None) -> Description:
    """Describe a model at images of `size` x `size` pixels (its own unless given). ValueError: unknown name."""
    model = nnx.eval_shape(lambda: create_model(name, dcls=dcls, rngs=shapes_only()))
    side = model.transform.crop if size is None else size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    frozen = nnx.eval_shape(freeze, model)
    jaxpr = jax.make_jaxpr(lambda model, image: model(image))(frozen, image)
    _, variant = MODELS[name]
    return Description(
        name,
        dcls,
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        _macs(jaxpr.jaxpr),
        jax.eval_shape(lambda model, image: model.features(image), model, image).shape[1:],
        model.transform,
        (variant.dcls_checkpoint if dcls else variant.checkpoint).file,
    )


def _macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape)
        match equation.primitive.name:
            case "depthwise_conv":
                total += out * math.prod(shapes[1][:2])
            case "conv_general_dilated":
                out_axis = equation.params["dimension_numbers"].rhs_spec[0]
                total += out * math.prod(shapes[1]) // shapes[1][out_axis]
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                total += out * math.prod(shapes[0][axis] for axis in contracted)
            case _:
                total += sum(_macs(inner) for inner in jaxprs_in_params(equation.params))
    return total


if __name__ == "__main__":
    described = [describe(name, dcls=dcls) for name in MODELS for dcls in (False, True)]
    rows = (json.dumps(dataclasses.asdict(it)) for it in described)
    _TABLE.write_text("[\n" + ",\n".join(rows) + "\n]\n")

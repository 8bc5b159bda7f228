"""The golden cases: small models of the originals, every parameter random, with what they give.

`tests/record_golden.py` records them. `golden/index.json` has a line for each: the model and its config, the DCLS
setting, and the layout of activations and gradients (images are NCHW).
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from dcls_jax import DclsConfig
from dcls_jax.models import Backbone, create_model
from tests.conftest import DATA, slow

FOLDER = DATA / "golden"
PEERS = [
    slow("convnext_base"),
    "convnext_dcls_v1",
    slow("resnet_base"),
    slow("resnet_dcls_v1"),
]  # those with `peer_maps`
CASES = json.loads((FOLDER / "index.json").read_text())


def load(case: str, folder: Path = FOLDER) -> tuple[Backbone, dict[str, np.ndarray]]:
    """The model of a case with its weights, and what is expected of it, NHWC."""
    spec = json.loads((folder / "index.json").read_text())[case]
    dcls = DclsConfig(**spec["dcls"]) if spec["dcls"] else False
    weights = folder / f"{case}.weights.safetensors"
    model = create_model(spec["model"], dcls=dcls, weights=weights, **spec["config"])
    expected = load_file(folder / f"{case}.expected.safetensors")
    for name in ("image",) if spec["layout"] == "NHWC" else ("image", "activations", "gradients"):
        expected[name] = expected[name].transpose(0, 2, 3, 1)
    return model, expected


def peer_maps(case: str) -> dict[str, np.ndarray]:
    """What pytorch-grad-cam 1.5.7 makes of a case at its third stage: METHOD.raw and METHOD.final."""
    return load_file(FOLDER / f"{case}.peer_cams.safetensors")

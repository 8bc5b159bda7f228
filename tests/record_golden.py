"""Record what an original in PyTorch has and gives, for the tests to hold our port against. Needs `make parity`.

    python -m tests.record_golden CASE --model NAME [--dcls COUNT SIZE VERSION] [--config JSON] [--seed SEED]
    python -m tests.record_golden NAME_timm_base --model NAME --keys

The first writes a golden case: a small model with every parameter random, its logits, activations, gradients and the
study's maps. The second lists keys and shapes of a whole model. Originals are timm's, built by `tests.torch_models`;
of a model that timm does not have, call `record` and `record_keys` with one built from its own repository.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from dcls_jax import DclsConfig
from tests.conftest import DATA
from tests.torch_models import CALIBRATED, study_maps, torch_model

CLASSES = (3, 7)  # what is explained of the two images


def record(folder: Path, case: str, original: nn.Module, name: str, config: dict, dcls: DclsConfig | None) -> None:
    """Write a case: an original in evaluation mode, and the name and config with which `create_model` makes ours."""
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.standard_normal((2, 3, CALIBRATED, CALIBRATED), np.float32))
    one_hot = torch.eye(config["num_classes"])[list(CLASSES)]
    expected = {"image": images, "one_hot": one_hot, **study_maps(original, images, one_hot)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_arrays(original.state_dict()), folder / f"{case}.weights.safetensors")
    save_file(_arrays(expected), folder / f"{case}.expected.safetensors")
    index = folder / "index.json"
    cases = json.loads(index.read_text()) if index.exists() else {}
    cases[case] = {"model": name, "config": config, "dcls": asdict(dcls) if dcls else None, "layout": "NCHW"}
    lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in cases.items())
    index.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record_keys(path: Path, original: nn.Module) -> None:
    """Write a line `KEY SHAPE DTYPE` for each entry of an original's state dict."""
    state = original.state_dict()
    lines = (f"{key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in state.items())
    path.write_text("\n".join(lines) + "\n")


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: np.ascontiguousarray(value.detach().numpy()) for key, value in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="name of what is recorded")
    parser.add_argument("--model", required=True, help="name of the model, ours and timm's")
    parser.add_argument("--dcls", nargs=3, metavar=("COUNT", "SIZE", "VERSION"), help="a DCLS setting")
    parser.add_argument("--config", type=json.loads, default={}, help='what makes it small: {"depths": [1, 1, 1, 1]}')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keys", action="store_true", help="list keys instead")
    parser.add_argument("--folder", type=Path, default=DATA)
    given = parser.parse_args()
    dcls = DclsConfig(int(given.dcls[0]), int(given.dcls[1]), given.dcls[2]) if given.dcls else None
    if given.keys:
        record_keys(given.folder / "keys" / f"{given.case}.txt", torch_model(given.model, dcls, **given.config))
        return
    config = {"num_classes": 10} | given.config
    original = torch_model(given.model, dcls, given.seed, **config)
    record(given.folder / "golden", given.case, original, given.model, config, dcls)


if __name__ == "__main__":
    main()

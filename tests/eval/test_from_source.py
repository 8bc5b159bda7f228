"""The evaluation where the package is only on the path, not installed."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import tiny

import dcls_jax


def test_results_know_the_version_without_an_installation(
    monkeypatch: pytest.MonkeyPatch, shards: Path, tmp_path: Path
) -> None:
    installed = importlib.metadata.version

    def version(package: str) -> str:
        if package == "dcls_jax":
            raise importlib.metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    tiny.evaluate(shards, out=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["versions"]["dcls_jax"] == dcls_jax.__version__

"""How much memory programs need is known, and what does not fit is said in a line, or done by smaller chunks."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.memory import MANY, peak_of, shapes_of
from dcls_jax import memory
from dcls_jax.cam import explain, explanation
from dcls_jax.eval import clickme, demo
from dcls_jax.memory import TooLargeError
from tests.conftest import normal

sys.path.insert(0, str(Path(__file__).parent / "eval"))
import tiny

LIMIT = 16 * 2**30


@pytest.mark.slow
@pytest.mark.parametrize("method", MANY)
@pytest.mark.parametrize(("name", "dcls"), [("convnext_tiny", True), ("resnet50", False)])
def test_methods_of_many_versions_stay_within_16_gib_at_the_first_stage(name: str, dcls: bool, method: str) -> None:
    needed = peak_of(shapes_of(name, dcls=dcls), method, batch=64, layer="stages.0")
    assert needed is not None
    assert 64 * 224 * 224 * 3 * 4 < needed < LIMIT


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that has no room for more than two images at a time; the sizes of the chunks that were tried."""
    tried: list[int] = []
    real = explanation.run

    def run(function: object, model: object, images: jax.Array, *arguments: object, **options: object) -> object:
        tried.append(len(images))
        if len(images) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        return real(function, model, images, *arguments, **options)

    monkeypatch.setattr(explanation, "run", run)
    return tried


def test_as_many_images_are_explained_at_a_time_as_there_is_room_for(room: list[int]) -> None:
    images, labels = normal(5, 224, 224, 3), np.arange(5)
    made = explain(tiny.Tiny(), images, labels)
    assert room == [5, 3, 2, 2, 2]
    np.testing.assert_allclose(made, explain(tiny.Tiny(), images, labels, chunk=1), atol=1e-6)
    with pytest.raises(jax.errors.JaxRuntimeError):
        explain(tiny.Tiny(), images, labels, chunk=4)  # as it was told


def test_what_has_no_room_at_all_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: pages\nof text")

    monkeypatch.setattr(explanation, "run", run)
    with pytest.raises(
        TooLargeError, match=r"^a chunk of 1 does not fit into a device's memory; lower masks_at_a_time"
    ):
        explain(tiny.Tiny(), normal(3, 224, 224, 3), np.arange(3))


def test_a_batch_too_large_is_refused_before_it_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shards = demo.SAMPLE / "val-0.tfrecords"
    clickme.evaluate(tiny.Tiny(), shards, batch_size=8, out=tmp_path / "run", progress=False)  # type: ignore[arg-type]
    peak = json.loads((tmp_path / "run" / "summary.json").read_text())["peak_bytes"]
    assert 224 * 224 * 3 * 4 < peak < 2**30  # of a picture on each of eight devices
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    with pytest.raises(TooLargeError, match=r"^a batch of 8 needs 0\.0 GiB of a device .* lower batch_size \(--batch"):
        clickme.evaluate(tiny.Tiny(), shards, batch_size=8, progress=False)  # type: ignore[arg-type]


def test_a_device_tells_what_it_has_left() -> None:
    left = memory.free(jax.devices()[0])
    assert left is None or 0 < left < 2**50
    told = type("Device", (), {"memory_stats": lambda _: {"bytes_limit": 10, "bytes_in_use": 4}})()
    assert memory.free(told) == 6

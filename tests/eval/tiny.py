"""What the tests of eval/ share: a model that compiles at once, records in ClickMe's format, and one evaluation.

Also a program, `python tiny.py RECORDS OUT KILL_AFTER METRIC...`, which prints scores or dies by SIGKILL after some
parts.
"""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from dcls_jax.eval import Settings, accuracy, clickme, faithfulness, localisation
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.data.regions import Region
from dcls_jax.eval.metric import Result
from dcls_jax.eval.results import Arrays, ResultsFolder
from dcls_jax.models import Transform


class Tiny(nnx.Module):
    """7 x 7 features of 32-pixel patches, averaged and classified."""

    transform = Transform(resize=256, crop=224)

    def __init__(self, seed: int = 0) -> None:
        rng, rngs = np.random.default_rng(seed), nnx.Rngs(seed)

        def normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, *_: object) -> jax.Array:
            """NumPy's numbers: those of jax.random may differ in a bit with the options a test is compiled with."""
            return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), dtype)

        self.patches = nnx.Linear(3 * 16, 8, kernel_init=normal, rngs=rngs)
        self.classifier = nnx.Linear(8, 10, kernel_init=normal, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        cells = images.reshape(-1, 7, 4, 8, 7, 4, 8, 3).mean((3, 6))
        return jax.nn.relu(self.patches(cells.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 7, 7, 48)))

    def head(self, activations: jax.Array) -> jax.Array:
        return self.classifier(jnp.tanh(activations.mean((1, 2))))


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def example(seed: int, *, constant_heatmap: bool = False, **features: bytes | int | None) -> bytes:
    """One record: a coarse random picture and heatmap, 256 x 256, label below 10; features: others, None to lack it."""
    rng = np.random.default_rng(seed)
    image, heatmap = (
        np.asarray(Image.fromarray(rng.integers(0, 256, shape, np.uint8)).resize((256, 256)))
        for shape in ((8, 8, 3), (8, 8))
    )
    drawn = {"image": jpeg(image), "heatmap": jpeg(heatmap * (not constant_heatmap)), "label": seed % 10}
    message = tf_example_pb2.Example()
    for name, value in (drawn | features).items():
        if isinstance(value, bytes):
            message.features.feature[name].bytes_list.value.append(value)
        elif value is not None:
            message.features.feature[name].int64_list.value.append(value)
    return message.SerializeToString()


def evaluate(paths: Path | list[Path], **options: object) -> clickme.Result:
    arguments = {"batch_size": 8, "progress": False} | options
    return clickme.evaluate(Tiny(), paths, **arguments)  # type: ignore[arg-type]


class Object(NamedTuple):
    image: np.ndarray
    label: int
    mask: np.ndarray

    @property
    def regions(self) -> dict[int, Region]:
        rows, columns = np.nonzero(self.mask)
        ends = np.array([[side.min(), side.max()] for side in (columns, rows) if side.size], int)
        return {self.label: Region(self.mask, ends.T.reshape(-1, 4))}


class Objects(ClickMe):
    """The same records for metrics of labels and of regions: the object is where the heatmap is high."""

    def __getitem__(self, index: int) -> Object:  # type: ignore[override]
        image, heatmap, label = super().__getitem__(index)
        return Object(image, label, heatmap > 190)


POINTING = replace(localisation.POINTING_PRESETS["torchray_voc"], classes=10)
METRICS: dict[str, Callable[[Any, Path, Settings], Sequence[Result]]] = {
    "clickme": lambda model, paths, settings: clickme.evaluate_protocols(model, paths, ("aligned",), settings=settings),
    "accuracy": lambda model, paths, settings: [accuracy.evaluate(model, Objects(paths), settings, k=(1, 3))],
    "faithfulness": lambda model, paths, settings: faithfulness.evaluate(
        model, ClickMe(paths), settings, presets=("group_cam_2021", "torch_cam_change", "adcc")
    ),
    "localisation": lambda model, paths, settings: localisation.evaluate(
        model,
        Objects(paths),
        settings,
        presets={"pointing": POINTING} | {name: localisation.PRESETS[name] for name in ("boxes", "iba", "wsol")},
    ),
}


def measure(metric: str, paths: Path, **options: object) -> Sequence[Result]:
    """One of METRICS of the tiny model."""
    settings = Settings(**{"batch_size": 8, "progress": False} | options)  # type: ignore[arg-type]
    return METRICS[metric](Tiny(), paths, settings)


def scores_of(results: Sequence[Result]) -> dict[str, Any]:
    """All that was found, as JSON values: status and scores by variant."""
    return {
        str(result.labels): {name: values.tolist() for name, values in result.scores.items()}
        | {"status": result.status.tolist()}
        for result in results
    }


def _die_after(parts: int) -> None:
    save = ResultsFolder.save

    def save_or_die(folder: ResultsFolder, batch: int, arrays: Arrays) -> None:
        if batch == parts:
            folder.part(batch).with_suffix(".npz.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder, batch, arrays)

    ResultsFolder.save = save_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    records, out, kill_after, *metrics = sys.argv[1:]
    if kill_after:
        _die_after(int(kill_after))
    scores = {metric: scores_of(measure(metric, Path(records), out=out or None)) for metric in metrics}
    print(json.dumps({"scores": scores, "devices": jax.device_count(), "tensorflow": "tensorflow" in sys.modules}))

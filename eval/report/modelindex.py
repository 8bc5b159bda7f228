"""Results in the form of a model card's `model-index`, as the Hugging Face Hub reads it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcls_jax.eval.report.collection import Collection, Row
from dcls_jax.files import write_bytes

_TASK = {"type": "image-classification", "name": "Image Classification"}


def model_index(collection: Collection, data: Callable[[Row], str]) -> dict[str, Any]:
    """{"model-index": [{"name", "results": [{"task", "dataset", "metrics": [{"type", "name", "value", "args"}]}]}]}.

    Sorted, and without times or places, so that the same results are the same bytes. data: what a row's are called.
    Values that are not a number are null. Of github.com/huggingface/hub-docs, modelcard.md.
    """
    models: dict[str, list[dict[str, Any]]] = {}
    for row in collection.rows:
        models.setdefault(row.result.name, []).append(_entry(row, data(row)))
    return {
        "model-index": [
            {"name": name, "results": sorted(entries, key=lambda entry: json.dumps(entry, sort_keys=True))}
            for name, entries in sorted(models.items())
        ]
    }


def _entry(row: Row, data: str) -> dict[str, Any]:
    result = row.result
    labels = dict(sorted(result.labels.items()))
    told_by = "".join(f", {name} {of}" for name, of in labels.items())
    numbers: dict[str, Any] = {
        **{name: float(value) if math.isfinite(value) else None for name, value in sorted(result.values.items())},
        "counted": result.counted,
        **{f"left out: {status}": number for status, number in sorted(result.left_out.items())},
    }
    metrics = [
        {"type": name, "name": f"{result.title}, {name.replace('_', ' ')}{told_by}", "value": value, "args": labels}
        for name, value in numbers.items()
    ]
    return {"task": _TASK, "dataset": {"type": row.of.run["arguments"]["evaluation"], "name": data}, "metrics": metrics}


def write_model_index(path: Path, collection: Collection, data: Callable[[Row], str]) -> None:
    """Write `model_index` as JSON."""
    content = model_index(collection, data)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))

"""Results folders with given scores, as a finished run leaves them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcls_jax.eval.clickme import HUMAN_CEILING
from dcls_jax.eval.metric import Result
from dcls_jax.eval.results import ResultsFolder
from dcls_jax.eval.status import Scores as Scored
from dcls_jax.eval.status import Status, counted

DATA = [{"file": "val-0.tfrecords", "bytes": 10, "records": 40}]
TITLES = {"clickme": "ClickMe human alignment", "faithfulness": "Faithfulness"}


def write(
    folder: Path,
    name: str,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    method: str = "grad_cam",
    constant: Sequence[int] = (),
    data: Any = DATA,
    evaluation: str = "clickme",
    label: str = "protocol",
) -> Path:
    """A folder of one run: by variant the scores (n, ...) of values; `constant`: the records that do not count."""
    count = len(next(iter(next(iter(variants.values())).values())))
    status = np.zeros(count, np.int8)
    status[list(constant)] = Status.CONSTANT.code
    labels = np.arange(count, dtype=np.int32) % 4
    arguments = {"evaluation": evaluation, "name": name, "method": method, "transform": {"crop": 224}}
    identity = {
        "arguments": arguments | {"presets": [*variants]},
        "data": data,
        "weights": "w",
        "program": "p",
        "versions": {"jax": "1.2.3"},
        "devices": "1 x cpu",
        "hosts": 1,
    }
    arrays: dict[str, np.ndarray] = {"label": labels}
    summaries = {}
    for variant, scores in variants.items():
        given = {value: np.asarray(of, np.float32) for value, of in scores.items()}
        values, codes = counted(Scored(given, status))
        means = {
            value: float(np.nanmean(of, dtype=np.float64)) if (codes == 0).any() else float("nan")
            for value, of in values.items()
            if of.ndim == 1
        }
        if evaluation == "clickme":
            means = {"alignment": means["spearman"] / HUMAN_CEILING, "mean_spearman": means["spearman"]}
        told = {"method": method, label: variant}
        result = Result(TITLES[evaluation], name, told, means, values, codes, (), 1.5, labels)
        summaries[variant] = result.summary()
        arrays |= {f"{variant}.{value}": of for value, of in given.items()} | {f"{variant}.status": status}
    with ResultsFolder(folder, identity) as results:
        results.save(0, arrays)
        results.finish({"results": summaries}, [f"val-0.tfrecords, record {number}" for number in range(count)])
    return folder


def scores(seed: int, count: int = 40, shift: float = 0.0) -> np.ndarray:
    """Random scores in -1 .. 1 or so."""
    return np.random.default_rng(seed).uniform(-0.4, 0.8, count).astype(np.float32) + np.float32(shift)


def pair(folder: Path, architecture: str = "small", **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Folders of a model without and with DCLS, by one method; the scores of both."""
    seed = sum(map(ord, architecture))
    standard, dcls = scores(seed), scores(seed + 1, shift=options.pop("shift", 0.1))
    write(folder / architecture, architecture, {"aligned": {"spearman": standard}}, **options)
    write(folder / f"{architecture}_dcls", f"{architecture}_dcls", {"aligned": {"spearman": dcls}}, **options)
    return standard, dcls

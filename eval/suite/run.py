"""What a suite comes to: cells, a metric of a model by a method each, of which those that are done are skipped."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax

from dcls_jax.eval import demo
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.data.folder import Folder, Pictures
from dcls_jax.eval.data.imagenet import ImageNet
from dcls_jax.eval.data.source import Samples, Source, as_source, first
from dcls_jax.eval.jobs import Job, run_all
from dcls_jax.eval.localisation.datasets import source_of
from dcls_jax.eval.metric import Settings
from dcls_jax.eval.program import FORMAT, versions
from dcls_jax.eval.stored import Stored, stored
from dcls_jax.eval.suite.metrics import METRICS, About
from dcls_jax.eval.suite.spec import Evaluation, Model, Suite, models_of
from dcls_jax.files import as_path
from dcls_jax.models import Backbone, create_model
from dcls_jax.models.create import published_file
from dcls_jax.models.published import Published, cache_folder, fetch


@dataclass(frozen=True, eq=False)
class Cell:
    """One metric of one model by one method, "" for a metric that is not of maps; `hash` of all that decides it."""

    model: Model
    evaluation: Evaluation
    method: str
    hash: str

    @property
    def name(self) -> str:
        """Of its folder, without what tells apart the programs that made it."""
        words = self.evaluation.metric, self.model.called, self.method, self.hash
        return "-".join(re.sub(r"[^\w.]+", "_", word) for word in words if word)


class Plan:
    """A suite's cells, and their results below `out`. Raises as the sources of the data do.

    download: fetch published weights that are not there; without, what needs them counts as not done.
    """

    def __init__(self, suite: Suite, out: Path, *, download: bool = True) -> None:
        self.suite, self.out = suite, out
        self._sources: dict[Any, Source[Any]] = {}
        self._identity: Callable[[Any], Any] = cache(lambda source: source.identity())  # of thousands of files, maybe
        weights = {model: weights_hash(model, download=download) for model in suite.models}
        self.cells = [
            Cell(model, evaluation, method, self._hash(model, weights[model], evaluation, method))
            for evaluation in suite.evaluations
            for model in models_of(suite, evaluation)
            for method in evaluation.methods or ("",)
        ]

    def source(self, evaluation: Evaluation) -> Source[Any]:
        """What an evaluation is of; evaluations of the same data have the same one."""
        as_metric_has = METRICS[evaluation.metric].source
        key = evaluation.data, evaluation.first, as_metric_has, evaluation.metric == "clickme"
        if key not in self._sources:
            opened = as_source(_opened(evaluation, skip_bad=self.suite.skip_bad))
            some = opened if evaluation.first is None else first(opened, evaluation.first)
            self._sources[key] = as_metric_has(some)
        return self._sources[key]

    def _hash(self, model: Model, weights: str, evaluation: Evaluation, method: str) -> str:
        device = jax.devices()[0]
        return _digest(
            {
                "format": FORMAT,
                "model": asdict(model) | {"weights": weights},
                "evaluation": asdict(evaluation) | {"methods": method, "models": None},
                "data": self._identity(self.source(evaluation)),
                "batch_size": self._batch_size(self.source(evaluation)),
                "skip_bad": self.suite.skip_bad,
                "devices": f"{jax.device_count()} x {device.device_kind}",
                "versions": versions(),
            }
        )

    def _batch_size(self, source: Source[Any]) -> int:
        """The suite's, or less where there are fewer records, such as all devices can share."""
        devices = jax.local_device_count()
        return min(self.suite.batch_size, -(-len(source) // devices) * devices)

    def folder(self, cell: Cell) -> Path | None:
        """Where the results of a cell are, if it is done."""
        return next((path.parent for path in sorted(self.out.glob(f"{cell.name}-*/summary.json"))), None)

    def passes(self) -> Iterator[tuple[Source[Any], dict[Cell, Path]]]:
        """What is left: passes over data, each with its cells and their folders.

        On a CPU a pass is of one model, as models take the time there; elsewhere of all, for which each record is read
        once. Cells of a pass that are done stay in it, since the last bits may depend on what a program has in it.
        """
        by_pass: dict[Any, list[Cell]] = {}
        for cell in self.cells:
            model = cell.model if jax.default_backend() == "cpu" else None
            by_pass.setdefault((id(self.source(cell.evaluation)), model), []).append(cell)
        for cells in by_pass.values():
            folders = {
                cell: path
                for model in dict.fromkeys(cell.model for cell in cells)
                for cell, path in self._folders([cell for cell in cells if cell.model == model]).items()
            }
            if any(not (path / "summary.json").exists() for path in folders.values()):
                yield self.source(cells[0].evaluation), folders

    def _folders(self, cells: Sequence[Cell]) -> dict[Cell, Path]:
        """Of a model's cells in a pass, without those that were done together with others than these."""
        together = _digest([cell.hash for cell in cells])
        folders = {cell: self.out / f"{cell.name}-{together}" for cell in cells}
        left = [cell for cell in cells if self.folder(cell) in (None, folders[cell])]
        return folders if len(left) == len(cells) else self._folders(left)

    def run(self, *, progress: bool = True) -> list[Stored]:
        """Run what is not done, and give the results of all. Raises as `jobs.run_all` and `create_model` do."""
        models: dict[Model, Backbone] = {}
        for source, folders in self.passes():
            for cell in folders:
                if cell.model not in models:
                    models[cell.model] = build(cell.model)
            jobs = [self._job(cell, models[cell.model], path, source, progress) for cell, path in folders.items()]
            run_all(jobs, source)
        return self.results()

    def _job(self, cell: Cell, model: Backbone, folder: Path, source: Source[Any], progress: bool) -> Job:
        settings = Settings(
            batch_size=self._batch_size(source),
            out=folder,
            skip_bad=self.suite.skip_bad,
            name=cell.model.called,
            progress=progress,
        )
        about = About(model, settings.transform_of(model), source, cell.evaluation, cell.method, cell.model.dtype)
        return Job(METRICS[cell.evaluation.metric].make(about), model, settings)

    def results(self, cells: Sequence[Cell] | None = None) -> list[Stored]:
        """Those of cells, all unless given, that are done, in the suite's order."""
        wanted = self.cells if cells is None else cells
        folders = [folder for cell in wanted if (folder := self.folder(cell))]
        return [stored(folder) for folder in dict.fromkeys(folders)]


def build(model: Model) -> Backbone:
    """The model of a suite, with its weights."""
    if model.sample:
        return demo.sample_model(model.name, dtype=model.dtype)
    return create_model(
        model.name, dcls=model.dcls, num_classes=model.num_classes, weights=model.weights, dtype=model.dtype
    )


def published(model: Model) -> Published | None:
    """The published file of a model's weights, if they are such."""
    return None if model.sample else published_file(model.name, dcls=model.dcls, weights=model.weights)


def weights_path(model: Model) -> Path:
    """The file or folder of a model's weights; of published ones where they are kept, there or not."""
    if model.sample:
        return demo.SAMPLE / model.name
    file = published(model)
    return cache_folder() / file.file if file and model.weights == "published" else as_path(model.weights)


def weights_hash(model: Model, *, download: bool) -> str:
    """Of the bytes of a model's weights; "" for a published file that is not there and must not be fetched."""
    path, file = weights_path(model), published(model)
    if not path.exists():
        if not download or file is None:
            return ""
        path = fetch(file)
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            digest.update(part.name.encode())
            with part.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _opened(evaluation: Evaluation, *, skip_bad: bool) -> Samples[Any]:
    data = evaluation.data
    match data.kind:
        case "sample":
            return ClickMe(demo.SAMPLE) if evaluation.metric == "clickme" else demo.SampleObjects()
        case "clickme":
            return ClickMe(data.pictures or "", skip_bad=skip_bad)
        case "pictures":
            return Pictures(data.pictures or "")
        case "classes":
            return Folder(data.pictures or "")
        case "imagenet" if not METRICS[evaluation.metric].located:
            return ImageNet()
    return source_of(data.kind, data.pictures, data.annotations)  # type: ignore[arg-type]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:10]

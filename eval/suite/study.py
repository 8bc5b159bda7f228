"""What the study needs, where it is had from, and how long it takes here."""

import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax

from dcls_jax.eval import clickme, demo
from dcls_jax.eval.data.clickme import FILE_RECORDS, STUDY_FILES, URL, ClickMe
from dcls_jax.eval.data.records import find_shards
from dcls_jax.eval.jobs import Job, program_of, reader_of
from dcls_jax.eval.metric import Settings
from dcls_jax.eval.study import STUDY
from dcls_jax.eval.suite.run import published, weights_path
from dcls_jax.eval.suite.spec import Model, Suite, load, parse
from dcls_jax.models import create_model
from dcls_jax.models.describe import descriptions
from dcls_jax.models.published import DownloadError, cache_folder

_RECORD = 50_000  # bytes; a guess, of two JPEGs of 256 x 256 pixels


class Need(NamedTuple):
    """A file that the study needs: bytes are estimated where it is not there and no server was asked."""

    name: str
    url: str
    path: Path
    bytes: int

    @property
    def there(self) -> bool:
        """Whether it is."""
        return self.path.exists()


def clickme_folder() -> Path:
    """Where ClickMe's files are looked for, and kept."""
    return cache_folder() / "clickme"


def models(dtype: str = "float32") -> tuple[Model, ...]:
    """The study's sixteen models."""
    return _study(demo.SAMPLE, dtype).models


def suite(*, sample: bool = False, dtype: str = "float32") -> Suite:
    """The study's suite, or the same of the sample's models and pictures. Raises as `load` does."""
    return load("demo", dtype) if sample else _study(clickme_folder(), dtype)


def _study(records: Path, dtype: str) -> Suite:
    text = (resources.files(__package__) / "study.yaml").read_text(encoding="utf-8")
    return parse(text.replace("clickme/val-*.tfrecords", str(records / "val-*.tfrecords")), "study", Path(), dtype)


def needs() -> list[Need]:
    """Every file of the study: sixteen checkpoints, seventeen files of ClickMe."""
    parameters = {(it.name, it.dcls): it.parameters for it in descriptions()}
    found = []
    for model in models():
        file = published(model)
        assert file is not None
        found.append(_need(model.called, file.url, weights_path(model), 4 * parameters[model.name, model.dcls]))
    for number in range(STUDY_FILES):
        path = clickme_folder() / f"val-{number}.tfrecords"
        found.append(_need(f"ClickMe {number + 1} of {STUDY_FILES}", URL.format(number), path, FILE_RECORDS * _RECORD))
    return found


def _need(name: str, url: str, path: Path, estimate: int) -> Need:
    return Need(name, url, path, path.stat().st_size if path.exists() else estimate)


def ask_sizes(wanted: Sequence[Need], *, patience: float = 3.0) -> list[Need]:
    """With the sizes that servers tell of what is not there; as they are where none answers."""
    import requests

    asked = []
    for place, need in enumerate(wanted):
        if need.there:
            asked.append(need)
            continue
        try:
            answer = requests.head(need.url, timeout=patience, allow_redirects=True)
            length = answer.headers.get("content-length", "") if answer.ok else ""
        except requests.RequestException:
            return [*asked, *wanted[place:]]
        asked.append(need._replace(bytes=int(length)) if length.isdigit() else need)
    return asked


def fetch_clickme() -> list[Path]:
    """ClickMe's files, those that are not there downloaded. Raises DownloadError, which says what to put where."""
    import pooch
    import requests

    folder = clickme_folder()
    for number in range(STUDY_FILES):
        url, name = URL.format(number), f"val-{number}.tfrecords"
        try:
            pooch.retrieve(url, None, name, folder, progressbar=True)
        except (requests.RequestException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise DownloadError(
                f"could not download {name}: get it from {url} and put it at {folder / name} ({reason})"
            ) from error
    return find_shards(folder)


def rates(models: Sequence[Model], *, batch_size: int = 32) -> Iterator[tuple[Model, float]]:
    """Images per second of each model here, by both methods and protocols, of one batch with random weights."""
    source = ClickMe(demo.SAMPLE)
    for model in models:
        network = create_model(model.name, dcls=model.dcls, dtype=model.dtype)
        settings, transform = Settings(batch_size=batch_size), network.transform
        metrics = [clickme.metric(network, clickme.PROTOCOLS, method=method, transform=transform) for method in STUDY]
        jobs = [Job(metric, network, settings) for metric in metrics]
        program = program_of(jobs, settings)
        read = reader_of(metrics[:1], source, skip_bad=False)
        rows = [read(index)[0] for index in range(batch_size)]
        jax.block_until_ready(program.start(rows))
        start = time.perf_counter()
        jax.block_until_ready(program.start(rows))
        yield model, batch_size / (time.perf_counter() - start)

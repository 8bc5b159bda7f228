"""The metrics that a suite may name: on which data, by which presets, and how each is made of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dcls_jax.eval import accuracy, clickme, demo, faithfulness, sanity
from dcls_jax.eval.data.source import Samples, Source, as_source
from dcls_jax.eval.localisation import evaluation as localisation
from dcls_jax.eval.localisation.datasets import PRESETS_OF
from dcls_jax.eval.metric import Metric
from dcls_jax.eval.similarity import SIMILARITY_PRESETS
from dcls_jax.models import Backbone, Transform

if TYPE_CHECKING:
    from dcls_jax.eval.suite.spec import Evaluation


@dataclass(frozen=True)
class About:
    """What a metric may need to know: the model, its dtype, what it sees, what it is measured on, and the method."""

    model: Backbone
    transform: Transform
    samples: Samples[Any]
    evaluation: "Evaluation"
    method: str
    dtype: str


Make = Callable[[About], Metric[Any, Any]]


@dataclass(frozen=True)
class Kind:
    """A metric: `make` of a model. data: the kinds of data it takes.

    presets(data) -> those it has there, of which the first `defaults` are taken unless others are named, all for None.
    options: its own, with what they are unless given and the values that they may have, none for any of that type.
    of_maps: whether it has methods. source: samples as the metric takes them.
    """

    data: tuple[str, ...]
    make: Make
    presets: Callable[[str], Mapping[str, Any] | Sequence[str]] = lambda data: ()
    defaults: int | None = None
    options: Mapping[str, tuple[Any, Sequence[str]]] = field(default_factory=dict)
    of_maps: bool = True
    source: Callable[[Any], Source[Any]] = as_source

    @property
    def located(self) -> bool:
        """Whether it needs to know where objects are."""
        return self.source is localisation.ByClass

    def classes(self, preset: str, data: str) -> int | None:
        """How many classes a model must have for a preset; None for any."""
        known = self.presets(data)
        return getattr(known[preset], "classes", None) if isinstance(known, Mapping) and preset in known else None


def _clickme(about: About) -> Metric[Any, Any]:
    protocols: Any = about.evaluation.presets
    return clickme.metric(about.model, protocols, method=about.method, transform=about.transform)


def _accuracy(about: About) -> Metric[Any, Any]:
    return accuracy.metric(about.model, about.transform, about.samples)


def _faithfulness(about: About) -> Metric[Any, Any]:
    return faithfulness.metric(about.transform, method=about.method, presets=about.evaluation.presets)


def _places(data: str) -> Mapping[str, Any]:
    return demo.WHERE if data == "sample" else {name: localisation.PRESETS[name] for name in PRESETS_OF[data]}  # type: ignore[index]


def _localisation(about: About) -> Metric[Any, Any]:
    known = _places(about.evaluation.data.kind)
    presets = {name: known[name] for name in about.evaluation.presets}
    return localisation.metric(about.model, about.transform, method=about.method, presets=presets)


def _sanity(about: About) -> Metric[Any, Any]:
    (preset,), options = about.evaluation.presets, about.evaluation.options
    return sanity.metric(about.model, about.transform, about.samples, method=about.method, preset=preset, **options)


def _label_randomisation(about: About) -> Metric[Any, Any]:
    (preset,), shuffled = about.evaluation.presets, demo.shuffled_model(dtype=about.dtype)
    return sanity.label_metric(
        about.model, shuffled, about.transform, about.samples, method=about.method, preset=preset
    )


_LABELLED = "sample", "classes", "imagenet"
METRICS: dict[str, Kind] = {
    "clickme": Kind(("sample", "clickme"), _clickme, lambda data: clickme.PROTOCOLS),
    "accuracy": Kind(_LABELLED, _accuracy, of_maps=False),
    "faithfulness": Kind((*_LABELLED, "pictures"), _faithfulness, lambda data: faithfulness.PRESETS, defaults=1),
    "localisation": Kind(("sample", *PRESETS_OF), _localisation, _places, source=localisation.ByClass),
    "sanity": Kind(
        _LABELLED,
        _sanity,
        lambda data: SIMILARITY_PRESETS,
        defaults=1,
        options={"order": ("cascading", ("cascading", "independent")), "seed": (0, ())},
    ),
    "label_randomisation": Kind(("sample",), _label_randomisation, lambda data: SIMILARITY_PRESETS, defaults=1),
}

"""A suite as it is written: models, methods, and what is evaluated on which data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from dcls_jax.cam import METHODS
from dcls_jax.eval import demo
from dcls_jax.eval.data.records import find_shards
from dcls_jax.eval.metric import name_in
from dcls_jax.eval.suite.located import Entries, Lines, Problems, SuiteError, read
from dcls_jax.eval.suite.metrics import METRICS, Kind
from dcls_jax.files import as_path, joined
from dcls_jax.models import list_models

DTYPES = "float32", "bfloat16"  # that models compute in
SHIPPED = "study", "faithfulness", "localisation", "sanity", "sample", "demo"
FILES: dict[
    str, tuple[str | None, str | None]
] = {  # of each kind of data: what its own key names, and what `annotations` does
    "sample": (None, None),
    "clickme": ("ClickMe's TFRecord files", None),
    "pictures": ("a folder of pictures", None),
    "classes": ("a folder with one of pictures for each class", None),
    "imagenet": ("a folder of ImageNet's validation pictures", "wsolevaluation's metadata/ILSVRC/test"),
    "voc": (None, None),
    "voc_masks": ("the folder VOCdevkit/VOC2012", None),
    "coco2014": ("the folder val2014", "instances_val2014.json"),
    "coco2017": ("the folder val2017", "instances_val2017.json"),
}


@dataclass(frozen=True)
class Model:
    """A model by name, or one of the sample's; `called` in results."""

    name: str
    called: str
    dcls: bool = False
    weights: str = "published"
    num_classes: int = 1000
    sample: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Data:
    """What is evaluated on: `kind` is a key of FILES."""

    kind: str
    pictures: str | None = None
    annotations: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """One metric on some data; `first`: of the data's records the first so many; models: those that it is of."""

    metric: str
    data: Data
    methods: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    first: int | None = None
    models: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Models by metrics, and how they are run."""

    name: str
    title: str
    models: tuple[Model, ...]
    evaluations: tuple[Evaluation, ...]
    batch_size: int = 32
    skip_bad: bool = False


def load(suite: str | Path, dtype: str | None = None) -> Suite:
    """A suite from its file, or by the name of one that comes with the package; dtype: instead of the file's.

    Paths in it are relative to its file's folder, of the package's to the current one. Raises SuiteError, which names
    every problem with its line, and FileNotFoundError.
    """
    if str(suite) in SHIPPED:
        text = (resources.files(__package__) / f"{suite}.yaml").read_text(encoding="utf-8")
        return parse(text, str(suite), Path(), dtype)
    path = as_path(suite)
    if not path.is_file():
        raise FileNotFoundError(f"no suite {str(path)!r}: neither a file nor one of {', '.join(SHIPPED)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path} is no YAML: {error}") from error
    return parse(text, path.name, path.parent, dtype)


def parse(text: str, name: str, folder: Path, dtype: str | None = None) -> Suite:
    """A suite from its text; folder: what its paths are relative to; dtype: instead of its own. Raises SuiteError."""
    content, problems = read(text, name), Problems()
    problems.keys(content, ("title", "models", "methods", "evaluations", "batch_size", "skip_bad", "dtype"))
    models = [_model(entry, line, folder, problems) for entry, line in _entries(content, "models", problems)]
    known = [model for model in models if model]
    called = [model.called for model in known]
    for twice in {name for name in called if called.count(name) > 1}:
        problems.add(content.lines["models"], f"two models are called {twice!r}; give one another name by `called`")
    evaluations = [
        _evaluation(entry, line, content, folder, known, problems)
        for entry, line in _entries(content, "evaluations", problems)
    ]
    batch_size = content.get("batch_size", 32)
    if not _whole(batch_size):
        problems.add(content.lines["batch_size"], f"batch_size (={batch_size!r}) must be a whole number above 0")
    chosen = content.get("dtype", "float32") if dtype is None else dtype
    problems.one_of(content.lines.get("dtype", content.line), "dtype", chosen, DTYPES)
    found = Suite(
        name=Path(name).stem,
        title=str(content.get("title", Path(name).stem)),
        models=tuple(known),
        evaluations=tuple(evaluation for evaluation in evaluations if evaluation),
        batch_size=batch_size,
        skip_bad=bool(content.get("skip_bad", False)),
    )
    problems.raise_any(name)
    return _in_dtype(found, chosen)


def _in_dtype(suite: Suite, dtype: str) -> Suite:
    """The suite with its models in a dtype, which their names say unless it is float32."""
    names = {model.called: name_in(model.called, dtype) for model in suite.models}
    models = tuple(replace(model, dtype=dtype, called=names[model.called]) for model in suite.models)
    evaluations = tuple(replace(it, models=tuple(names[name] for name in it.models)) for it in suite.evaluations)
    return replace(suite, models=models, evaluations=evaluations)


def _entries(content: Lines, key: str, problems: Problems) -> Iterable[tuple[Any, int]]:
    """What a list holds, each with its line."""
    entries = content.get(key)
    if not isinstance(entries, Entries) or not entries:
        problems.add(content.lines.get(key, content.line), f"{key} must be a list of at least one")
        return []
    return zip(entries, entries.lines, strict=True)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _model(entry: Any, line: int, folder: Path, problems: Problems) -> Model | None:
    if isinstance(entry, str):
        return Model(entry, entry) if problems.one_of(line, "model", entry, list_models()) else None
    if not isinstance(entry, Lines):
        problems.add(line, f"a model is {entry!r}, expected a name or a mapping")
        return None
    if "sample" in entry:
        problems.keys(entry, ("sample", "called"))
        name = entry["sample"]
        fits = problems.one_of(line, "model of the sample", name, demo.NAMES)
        return Model(name, str(entry.get("called", name)), num_classes=demo.CLASSES, sample=True) if fits else None
    problems.keys(entry, ("model", "dcls", "weights", "num_classes", "called"))
    name, dcls, weights = entry.get("model"), entry.get("dcls", False), str(entry.get("weights", "published"))
    classes = entry.get("num_classes", 1000)
    fits = problems.one_of(line, "model", name, list_models())
    if not isinstance(dcls, bool):
        problems.add(entry.lines["dcls"], f"dcls (={dcls!r}) must be true or false")
    if not _whole(classes):
        problems.add(entry.lines["num_classes"], f"num_classes (={classes!r}) must be a whole number above 0")
    if weights != "published":
        weights = str(joined(folder, weights))
        if not as_path(weights).exists():
            problems.add(entry.lines["weights"], f"weights {weights!r} are not there")
    called = str(entry.get("called", f"{name}_dcls" if dcls else name))
    return Model(str(name), called, bool(dcls), weights, classes) if fits else None


def _evaluation(
    entry: Any, line: int, content: Lines, folder: Path, models: Sequence[Model], problems: Problems
) -> Evaluation | None:
    if not isinstance(entry, Lines):
        problems.add(line, f"an evaluation is {entry!r}, expected a mapping")
        return None
    metric = entry.get("metric")
    if not problems.one_of(entry.line, "metric", metric, METRICS):
        return None
    kind = METRICS[str(metric)]
    problems.keys(entry, ("metric", "data", "methods", "presets", "first", "models", *kind.options))
    data = _data(entry, kind, folder, problems)
    methods = _names(entry if "methods" in entry else content, "methods", problems) if kind.of_maps else ()
    for method in methods:
        place = (entry if "methods" in entry else content).lines["methods"]
        problems.one_of(place, "method", method, METHODS)
    if kind.of_maps and not methods:
        problems.add(entry.line, f"{metric} is of maps, and neither it nor the suite names methods")
    elif not kind.of_maps and "methods" in entry:
        problems.add(entry.lines["methods"], f"{metric} is not of maps, and has no methods")
    known = kind.presets(data.kind) if data else ()
    presets = _names(entry, "presets", problems) or tuple(known)[: kind.defaults]
    for preset in presets if data else ():
        problems.one_of(entry.lines.get("presets", entry.line), f"preset of {metric}", preset, known)
    chosen = _names(entry, "models", problems)
    for model in chosen:
        problems.one_of(entry.lines["models"], "model of this suite", model, [it.called for it in models])
    first = entry.get("first")
    if first is not None and not _whole(first):
        problems.add(entry.lines["first"], f"first (={first!r}) must be a whole number above 0")
    options = {name: entry.get(name, default) for name, (default, _) in kind.options.items()}
    for name, (default, choices) in kind.options.items():
        if choices:
            problems.one_of(entry.lines.get(name, entry.line), name, options[name], choices)
        elif type(options[name]) is not type(default):
            problems.add(entry.lines[name], f"{name} (={options[name]!r}) must be like {default!r}")
    if data is None:
        return None
    found = Evaluation(str(metric), data, methods, presets, first, chosen, options)
    _check_classes(found, entry.line, models, problems)
    return found


def _names(mapping: Lines, key: str, problems: Problems) -> tuple[str, ...]:
    value = mapping.get(key, [])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problems.add(mapping.lines[key], f"{key} (={value!r}) must be a list of names")
        return ()
    return tuple(dict.fromkeys(names))


def _data(entry: Lines, kind: Kind, folder: Path, problems: Problems) -> Data | None:
    data, line = entry.get("data"), entry.lines.get("data", entry.line)
    named: dict[str, Any] = {data: None} if isinstance(data, str) else data if isinstance(data, dict) else {}
    names = [name for name in named if name != "annotations"]
    if len(names) != 1:
        problems.add(line, f"data (={data!r}) must be one of {', '.join(kind.data)}, with a path where it needs one")
        return None
    (name,) = names
    if name in FILES and name not in kind.data:
        problems.add(line, f"{entry['metric']} cannot be measured on {name}; on {', '.join(kind.data)} it can")
        return None
    if not problems.one_of(line, "data", name, kind.data):
        return None
    pictures, annotations = (
        _path(path, f"{name}{argument}", what, folder, line, problems)
        for path, argument, what in zip(
            (named[name], named.get("annotations")), ("", " as annotations"), _files(name, kind), strict=True
        )
    )
    return Data(name, pictures, annotations)


def _files(name: str, kind: Kind) -> tuple[str | None, str | None]:
    """What data need; ImageNet without its boxes comes from TFDS."""
    return (None, None) if name == "imagenet" and not kind.located else FILES[name]


def _path(path: Any, where: str, what: str | None, folder: Path, line: int, problems: Problems) -> str | None:
    if what is None and path is not None:
        problems.add(line, f"{where} takes no path")
    elif what is not None and path is None:
        problems.add(line, f"{where} needs a path: {what}")
    elif path is not None:
        with problems.at(line):
            _check_there(str(joined(folder, str(path))), where)
        return str(joined(folder, str(path)))
    return None


def _check_there(path: str, where: str) -> None:
    if where == "clickme":
        find_shards(path)
    elif not as_path(path).exists():
        raise FileNotFoundError(f"{path!r} is not there")


def _check_classes(evaluation: Evaluation, line: int, models: Sequence[Model], problems: Problems) -> None:
    """Note models that do not fit an evaluation's classes."""
    kind = METRICS[evaluation.metric]
    for model in models:
        if evaluation.models and model.called not in evaluation.models:
            continue
        has = f"model {model.called} has {model.num_classes} classes"
        for preset in evaluation.presets:
            classes = kind.classes(preset, evaluation.data.kind)
            if classes not in (None, model.num_classes):
                problems.add(line, f"{has}, but preset {preset} is of {classes}")
        if evaluation.data.kind == "sample" and model.num_classes < demo.CLASSES:
            problems.add(line, f"{has}, but the sample has {demo.CLASSES}")
        if evaluation.metric == "label_randomisation" and not (model.sample and model.name == demo.NAMES[0]):
            problems.add(
                line, f"only the sample's {demo.NAMES[0]} was trained on shuffled labels too; name it in models"
            )


def models_of(suite: Suite, evaluation: Evaluation) -> list[Model]:
    """The models that an evaluation is of."""
    return [model for model in suite.models if not evaluation.models or model.called in evaluation.models]

"""What several commands have in common."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcls_jax.eval.cli import Stopped, at_work, end
from dcls_jax.files import as_path

if TYPE_CHECKING:
    from dcls_jax.eval.data.source import Samples
    from dcls_jax.eval.metric import Settings
    from dcls_jax.models import Backbone
    from dcls_jax.models.published import Accuracy

CHECKPOINT = "a .pth, .pth.tar, .pt, .bin or .safetensors file, a model hub's folder of these, or an Orbax folder"

Model = Annotated[str, typer.Option("--model", "-m", help="A name that `dcls-jax models` lists.")]
Dcls = Annotated[bool, typer.Option("--dcls", help="The model with DCLS, in its published setting.")]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        "-w",
        help=f"A checkpoint: {CHECKPOINT}; or 'published' to download it.",
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(help="What the model computes in; maps, scores and ranks are float32 all the same."),
]
NumClasses = Annotated[int, typer.Option(help="How many classes the checkpoint has.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time, over all devices.")]
Out = Annotated[
    Path,
    typer.Option(parser=as_path, metavar="FOLDER", help="Where results are kept, or a URL; the same command resumes."),
]
Pictures = Annotated[
    Path | None,
    typer.Argument(help="A folder with one of pictures for each class; else ImageNet's validation split of TFDS."),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed", help="This process is one of a job of several, as docs/hosts.md says; all share the folder."
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count damaged records and go on.")]


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, and how: the options of every evaluation."""

    model: Model
    weights: Weights = "published"
    dcls: Dcls = False
    num_classes: NumClasses = 1000
    dtype: Dtype = "float32"
    batch_size: BatchSize = 32
    out: Out = Path("results")
    skip_bad: SkipBad = False
    distributed: Distributed = False

    @property
    def name(self) -> str:
        """What results call the model."""
        from dcls_jax.eval.metric import name_in

        return name_in(f"{self.model}_dcls" if self.dcls else self.model, self.dtype)

    def settings(self, folder: Path) -> "Settings":
        """Those of a run with its results in that folder."""
        from dcls_jax.eval.metric import Settings

        return Settings(batch_size=self.batch_size, out=folder, skip_bad=self.skip_bad, name=self.name)

    def build(self) -> "Backbone":
        """The model with its weights."""
        return built(self.model, self.weights, dcls=self.dcls, num_classes=self.num_classes, dtype=self.dtype)

    def accuracy(self) -> "Sequence[Accuracy]":
        """What is said of the weights, where they are a published file."""
        from dcls_jax.models.create import published_file

        published = published_file(self.model, dcls=self.dcls, weights=self.weights)
        return published.accuracy if published else ()


def start(distributed: bool) -> None:
    """Begin a command's work, on many hosts before anything touches a device."""
    at_work()
    if distributed:
        from dcls_jax.eval.hosts import join

        join()


def is_first() -> bool:
    """Whether this process says what came of the work: the only one, or the first of a job."""
    import jax

    return jax.process_index() == 0


def built(model: str, weights: str, *, dcls: bool, num_classes: int, dtype: str = "float32") -> "Backbone":
    """A model with its weights; of those that have a description beside them, with the settings that it says.

    Raises ValueError where that says another model, and what `create_model` raises.
    """
    from dcls_jax.models import create_model, load_model
    from dcls_jax.models.described import described

    found = None if weights == "published" else described(weights)
    if found is None:
        return create_model(model, dcls=dcls, num_classes=num_classes, weights=weights, dtype=dtype)
    if found.name != model:
        raise ValueError(f"model (={model!r}) is not what the description beside {weights} says, {found.name!r}")
    return load_model(weights, dtype=dtype)


def labelled(pictures: Pictures) -> "Samples[tuple[Any, ...]]":
    """Pictures with their labels."""
    from dcls_jax.eval.data.folder import Folder
    from dcls_jax.eval.data.imagenet import ImageNet

    return ImageNet() if pictures is None else Folder(pictures)


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [*inspect.signature(function).parameters.values()]


def spread(shared: Callable[..., Any], own: Sequence[inspect.Parameter], function: Callable[..., None]) -> Any:
    """function(options, ...) as a function of its `own` options and of the fields of `shared`, a dataclass."""
    names = [option.name for option in parameters(shared)]

    @wraps(function)
    def of_them_all(**options: Any) -> None:
        function(shared(**{name: options.pop(name) for name in names}), **options)

    taken = [option.replace(kind=option.KEYWORD_ONLY) for option in (*own, *parameters(shared))]
    vars(of_them_all).update(__signature__=inspect.Signature(taken))
    of_them_all.__annotations__ = {option.name: option.annotation for option in taken}
    return of_them_all


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function as a command, its compiled programs kept, which a signal ends once what is open is closed."""

    @wraps(function)
    def stoppable(*arguments: Any, **options: Any) -> None:
        from dcls_jax.compilation import keep_compilations

        keep_compilations()
        try:
            function(*arguments, **options)
        except Stopped as signal:
            end(signal.number)
        finally:
            at_work(False)

    return stoppable

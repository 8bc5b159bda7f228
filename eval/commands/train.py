"""The commands that train and fine-tune."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcls_jax.eval.cli import printable
from dcls_jax.eval.commands.options import CHECKPOINT, Distributed, command, is_first, parameters, spread, start

if TYPE_CHECKING:
    from dcls_jax.eval.data.learning import Data
    from dcls_jax.eval.training import Options
    from dcls_jax.models import Backbone
    from dcls_jax.training import Recipe

Out = Annotated[Path, typer.Option(help="The folder of the run; the same command goes on there.")]


@dataclass(frozen=True)
class Run:
    """The pictures, and how a run on them goes: the options that training and fine-tuning share."""

    data: Annotated[
        str,
        typer.Option(
            help="A folder with one of pictures for each class, or with train and val of these; or imagenet2012."
        ),
    ]
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Another value for a field of the recipe; several times."),
    ] = None
    hold_out: Annotated[float, typer.Option(help="Of a folder without val: the share of pictures to test with.")] = 0.1
    accumulate: Annotated[
        int, typer.Option(help="Parts of a batch, one after the other, where it fills the memory.")
    ] = 1
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="In which layers compute; what is learned stays float32.")
    ] = "float32"
    workers: Annotated[
        int, typer.Option(help="Processes that read and augment pictures; 0 for threads of this one.")
    ] = 0
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; an epoch unless given.")] = 0
    keep: Annotated[int, typer.Option(help="How many last checkpoints stay, beside the best.")] = 2
    weights_every: Annotated[
        int, typer.Option(help="Also keep the weights after so many epochs, in epochs/; 0: never.")
    ] = 0
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write curves; needs tensorboardX.")] = False
    group_cam: Annotated[
        float,
        typer.Option(help="Share of pictures of which is blurred what their Group-CAM says tells nothing of them."),
    ] = 0.0
    distributed: Distributed = False

    def pictures(self, batch_size: int, out: Path) -> "Data":
        """The data; what may be wrong with them or the folder is said before a model is made, which takes a while."""
        from dcls_jax.eval.data.learning import data_of
        from dcls_jax.eval.results import check_writable
        from dcls_jax.eval.training import steps_of

        data = data_of(self.data, hold_out=self.hold_out)
        steps_of(data, batch_size, self.accumulate)
        check_writable(out)
        return data

    def options(self, out: Path, **more: Any) -> "Options":
        """Those of `fit`."""
        from dcls_jax.eval.training import Options

        same = "accumulate", "workers", "save_every", "keep", "tensorboard", "group_cam", "weights_every"
        return Options(out, **{name: getattr(self, name) for name in same}, **more)


def training(function: Callable[..., None]) -> Callable[..., None]:
    """A command of function(run, its own options)."""
    return command(spread(Run, parameters(function)[1:], function))


@training
def train(
    run: Run,
    recipe: Annotated[str, typer.Argument(help="A published recipe: convnext_dcls_tiny, caformer_s18_dcls, ...")],
    out: Out = Path("results/train"),
    epochs: Annotated[
        int | None, typer.Option(help="In so many; warm-up and what else counts epochs in proportion.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures of a step, over all devices; rates in proportion to it.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The largest, for that batch size.")] = None,
    dcls: Annotated[
        bool, typer.Option("--dcls/--no-dcls", help="With learnable spacings, or the usual kernels.")
    ] = True,
) -> None:
    """Train a model from the start by a published recipe; stopped or killed, the same command goes on."""
    from dcls_jax.eval.starts import untrained
    from dcls_jax.training import recipe as published

    start(run.distributed)
    chosen = _changed(published(recipe), epochs, batch_size, learning_rate, run.changes)
    pictures = run.pictures(chosen.batch_size, out)
    model = untrained(chosen if dcls else replace(chosen, dcls=None), len(pictures.classes), dtype=run.dtype)
    _fit(model, chosen.model, chosen, pictures, run.options(out), dtype=run.dtype, start="random weights")


@training
def finetune(
    run: Run,
    checkpoint: Annotated[
        str, typer.Argument(help=f"What to begin with: {CHECKPOINT}; or 'published' to download it.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Its name, of `dcls-jax models`; not needed where NAME.json beside says it."
        ),
    ] = None,
    dcls: Annotated[bool, typer.Option("--dcls", help="The model with DCLS, in its published setting.")] = False,
    out: Out = Path("results/finetune"),
    epochs: Annotated[int, typer.Option(help="How many times each picture is seen.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Pictures of a step, over all devices.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="The largest, of the last layer.")] = 5e-4,
    layer_decay: Annotated[float, typer.Option(help="Each layer learns so many times as fast as the next.")] = 0.8,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="What does not learn: 'body', all but the head, or parts such as stem or 'stages.[01]'."),
    ] = None,
    keep_head: Annotated[
        bool, typer.Option("--keep-head", help="The classes are the checkpoint's: go on with it.")
    ] = False,
) -> None:
    """Fine-tune a checkpoint on pictures of other classes; stopped or killed, the same command goes on."""
    from dcls_jax.eval.starts import body, for_fine_tuning

    start(run.distributed)
    pictures = run.pictures(batch_size, out)
    built, name, recipe = for_fine_tuning(
        checkpoint,
        len(pictures.classes),
        model=model,
        dcls=dcls,
        dtype=run.dtype,
        new_head=not keep_head,
        changes={"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate} | _values(run.changes),
    )
    frozen = tuple(dict.fromkeys(part for it in freeze or () for part in (body(built) if it == "body" else [it])))
    head = "the head goes on too" if keep_head else f"the head is new, for {len(pictures.classes)} classes"
    _say(f"begins with {checkpoint}; {head}")
    options = run.options(out, frozen=frozen, layer_decay=layer_decay)
    _fit(built, name, recipe, pictures, options, dtype=run.dtype, start=checkpoint)


def _say(line: str) -> None:
    """Print a line, in one process of a job."""
    if is_first():
        print(printable(line))


def _fit(model: "Backbone", name: str, recipe: "Recipe", data: "Data", options: "Options", **origin: Any) -> None:
    import jax
    from flax import nnx

    from dcls_jax.eval.training import fit, steps_of
    from dcls_jax.training.log import read

    steps = steps_of(data, recipe.batch_size, options.accumulate)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    test = f"{len(data.validation):,} to test with" if data.validation else "none to test with"
    _say(f"{name}: {count:,} parameters; {len(data.classes)} classes")
    _say(f"{len(data.train):,} pictures to learn from, {test}; {recipe.total_epochs} epochs of {steps:,} steps")
    fit(model, name, recipe, data, options, **origin)
    rows = read(options.out / "log.csv")
    tested = [(float(row["top1"]), float(row["epoch"])) for row in rows if row.get("top1")]
    if tested:
        best, epoch = max(tested)
        _say(f"accuracy            {tested[-1][0]:.2%} at the end, at best {best:.2%}, after epoch {epoch:g}")
    _say(f"weights             {options.out / 'weights'}")
    if tested:
        _say(f"best weights        {options.out / 'best'}")
    _say(f"log                 {options.out / 'log.csv'}")


def _changed(
    recipe: "Recipe",
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    changes: Sequence[str] | None,
) -> "Recipe":
    from dcls_jax.eval.starts import shortened, with_fields

    if batch_size is not None:
        recipe = recipe.for_batches_of(batch_size)
    if epochs is not None:
        recipe = shortened(recipe, epochs)
    if learning_rate is not None:
        recipe = replace(recipe, learning_rate=learning_rate)
    return with_fields(recipe, _values(changes))


def _values(changes: Sequence[str] | None) -> dict[str, Any]:
    """Fields and values of --set. Raises ValueError for what is not FIELD=VALUE."""
    import yaml

    pairs = [it.partition("=") for it in changes or ()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ValueError(f"--set {name}{equals}{value} must be like --set FIELD=VALUE")
    return {name: _number(yaml.safe_load(value)) for name, _, value in pairs}


def _number(value: Any) -> Any:
    """1e-3 is a number too, which YAML takes for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value

"""The commands that train and fine-tune."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcls_jax.eval.cli import printable
from dcls_jax.eval.commands.options import CHECKPOINT, Distributed, command, is_first, start

if TYPE_CHECKING:
    from dcls_jax.eval.data.learning import Data
    from dcls_jax.eval.training import Options
    from dcls_jax.models import Backbone
    from dcls_jax.training import Recipe

DataFrom = Annotated[
    str,
    typer.Option(
        "--data", help="A folder with one of pictures for each class, or with train and val of these; or imagenet2012."
    ),
]
Out = Annotated[Path, typer.Option(help="The folder of the run; the same command goes on there.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Another value for a field of the recipe; several times."),
]
Epochs = Annotated[int | None, typer.Option(help="In so many; warm-up and what else counts epochs in proportion.")]
Batch = Annotated[
    int | None, typer.Option("--batch-size", help="Pictures of a step, over all devices; rates in proportion to it.")
]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="The largest, for that batch size.")]
HoldOut = Annotated[float, typer.Option(help="Of a folder without val: the share of pictures to test with.")]
Accumulate = Annotated[int, typer.Option(help="Parts of a batch, one after the other, where it fills the memory.")]
DType = Annotated[
    Literal["float32", "bfloat16"], typer.Option(help="In which layers compute; what is learned stays float32.")
]
Workers = Annotated[int, typer.Option(help="Processes that read and augment pictures; 0 for threads of this one.")]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints; an epoch unless given.")]
Keep = Annotated[int, typer.Option(help="How many last checkpoints stay, beside the best.")]
WeightsEvery = Annotated[int, typer.Option(help="Also keep the weights after so many epochs, in epochs/; 0: never.")]
Curves = Annotated[bool, typer.Option("--tensorboard", help="Also write curves; needs tensorboardX.")]
GroupCam = Annotated[
    float, typer.Option(help="Share of pictures of which is blurred what their Group-CAM says tells nothing of them.")
]


@command
def train(
    recipe: Annotated[str, typer.Argument(help="A published recipe: convnext_dcls_tiny, caformer_s18_dcls, ...")],
    data: DataFrom,
    out: Out = Path("results/train"),
    epochs: Epochs = None,
    batch_size: Batch = None,
    learning_rate: Rate = None,
    changes: Set = None,
    dcls: Annotated[
        bool, typer.Option("--dcls/--no-dcls", help="With learnable spacings, or the usual kernels.")
    ] = True,
    hold_out: HoldOut = 0.1,
    accumulate: Accumulate = 1,
    dtype: DType = "float32",
    workers: Workers = 0,
    save_every: SaveEvery = 0,
    keep: Keep = 2,
    weights_every: WeightsEvery = 0,
    tensorboard: Curves = False,
    group_cam: GroupCam = 0.0,
    distributed: Distributed = False,
) -> None:
    """Train a model from the start by a published recipe; stopped or killed, the same command goes on."""
    from dcls_jax.eval.data.learning import data_of
    from dcls_jax.eval.starts import untrained
    from dcls_jax.eval.training import Options
    from dcls_jax.training import recipe as published

    start(distributed)
    chosen = _changed(published(recipe), epochs, batch_size, learning_rate, changes)
    pictures = data_of(data, hold_out=hold_out)
    _check(pictures, chosen.batch_size, accumulate, out)
    model = untrained(chosen if dcls else replace(chosen, dcls=None), len(pictures.classes), dtype=dtype)
    options = Options(
        out,
        accumulate,
        workers,
        save_every,
        keep=keep,
        tensorboard=tensorboard,
        group_cam=group_cam,
        weights_every=weights_every,
    )
    _fit(model, chosen.model, chosen, pictures, options, dtype=dtype, start="random weights")


@command
def finetune(
    checkpoint: Annotated[
        str, typer.Argument(help=f"What to begin with: {CHECKPOINT}; or 'published' to download it.")
    ],
    data: DataFrom,
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
    changes: Set = None,
    hold_out: HoldOut = 0.1,
    accumulate: Accumulate = 1,
    dtype: DType = "float32",
    workers: Workers = 0,
    save_every: SaveEvery = 0,
    keep: Keep = 2,
    weights_every: WeightsEvery = 0,
    tensorboard: Curves = False,
    group_cam: GroupCam = 0.0,
    distributed: Distributed = False,
) -> None:
    """Fine-tune a checkpoint on pictures of other classes; stopped or killed, the same command goes on."""
    from dcls_jax.eval.data.learning import data_of
    from dcls_jax.eval.starts import body, for_fine_tuning
    from dcls_jax.eval.training import Options

    start(distributed)
    pictures = data_of(data, hold_out=hold_out)
    _check(pictures, batch_size, accumulate, out)
    built, name, recipe = for_fine_tuning(
        checkpoint,
        len(pictures.classes),
        model=model,
        dcls=dcls,
        dtype=dtype,
        new_head=not keep_head,
        changes={"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate} | _values(changes),
    )
    frozen = tuple(dict.fromkeys(part for it in freeze or () for part in (body(built) if it == "body" else [it])))
    options = Options(
        out,
        accumulate,
        workers,
        save_every,
        keep=keep,
        tensorboard=tensorboard,
        frozen=frozen,
        layer_decay=layer_decay,
        group_cam=group_cam,
        weights_every=weights_every,
    )
    head = "the head goes on too" if keep_head else f"the head is new, for {len(pictures.classes)} classes"
    _say(f"begins with {checkpoint}; {head}")
    _fit(built, name, recipe, pictures, options, dtype=dtype, start=checkpoint)


def _say(line: str) -> None:
    """Print a line, in one process of a job."""
    if is_first():
        print(printable(line))


def _check(data: "Data", batch_size: int, accumulate: int, out: Path) -> None:
    """What may be wrong is said before a model is made, which takes a while."""
    from dcls_jax.eval.results import check_writable
    from dcls_jax.eval.training import steps_of

    steps_of(data, batch_size, accumulate)
    check_writable(out)


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

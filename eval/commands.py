"""The commands of `dcls-jax`. What one needs is imported when it runs, so that --help is there at once."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dcls_jax.eval.cli import Stopped, at_work, end, printable

app = typer.Typer(
    name="dcls-jax",
    help="Study what vision models look at: class activation maps, and how well they agree with people.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
evaluations = typer.Typer(no_args_is_help=True, help="Evaluate the maps of a model on a data set.")
app.add_typer(evaluations, name="eval")

_CHECKPOINT = "a .pth, .pth.tar, .pt, .bin or .safetensors file, a model hub's folder of these, or an Orbax folder"

Model = Annotated[str, typer.Option("--model", "-m", help="A name that `dcls-jax models` lists.")]
Dcls = Annotated[bool, typer.Option("--dcls", help="The model with DCLS, in its published setting.")]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        "-w",
        help=f"A checkpoint: {_CHECKPOINT}; or 'published' to download it.",
    ),
]


def _command(command: Callable[..., None]) -> Callable[..., None]:
    """The command, its compiled programs kept, which a signal ends once what is open is closed."""

    @wraps(command)
    def stoppable(*arguments: Any, **options: Any) -> None:
        from dcls_jax.compilation import keep_compilations

        keep_compilations()
        try:
            command(*arguments, **options)
        except Stopped as signal:
            end(signal.number)
        finally:
            at_work(False)

    return stoppable


@app.command()
@_command
def demo(
    out: Annotated[Path, typer.Option(help="The folder for results and pictures.")] = Path("results/demo"),
) -> None:
    """Evaluate two small models on a small sample, both in the package: the whole pipeline, offline, in a minute."""
    from dcls_jax.eval import demo
    from dcls_jax.eval.report import print_results

    at_work()
    print_results(demo.run(out))
    print(printable(f"maps: {out / 'maps.png'}\nresults: {out}"))


@app.command()
@_command
def cam(
    images: Annotated[list[Path], typer.Argument(help="Pictures, in any format that Pillow reads.", exists=True)],
    model: Model,
    weights: Weights = "published",
    dcls: Dcls = False,
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "grad_cam,threshold_grad_cam",
    layer: Annotated[
        list[str] | None, typer.Option(help="The layer whose activations are weighed; may be given several times.")
    ] = None,
    combine: Annotated[
        Literal["mean", "max", "product"] | None,
        typer.Option(help="One map for all layers; unless given, each layer has its own."),
    ] = None,
    target: Annotated[int | None, typer.Option(help="The class to explain in every picture.")] = None,
    top_k: Annotated[int, typer.Option(help="Else, how many of each picture's most probable classes.")] = 1,
    augment: Annotated[
        bool, typer.Option("--augment", help="Average over the picture and its mirror at three brightnesses.")
    ] = False,
    eigen_smooth: Annotated[
        bool, typer.Option("--eigen-smooth", help="The main pattern of the channels' contributions, not their sum.")
    ] = False,
    style: Annotated[
        Literal["heatmap", "signed", "contour"],
        typer.Option(help="What the grid shows: what speaks for the class, also what speaks against it, or lines."),
    ] = "heatmap",
    colormap: Annotated[
        str | None, typer.Option(help="A colormap of matplotlib's: plasma unless given, for signed bwr.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Opacity of the largest value, 0 to 1: 0.75 unless given, for signed 0.9.")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="How many classes the checkpoint has.")] = 1000,
    out: Annotated[Path, typer.Option(help="The folder for maps.png, overlays/, maps.npz and manifest.json.")] = Path(
        "results/cam"
    ),
) -> None:
    """Draw class activation maps of pictures: a grid, each map by itself, the raw maps, and a manifest."""
    from dcls_jax.cam.styles import check_style
    from dcls_jax.eval import pictures
    from dcls_jax.eval.results import check_writable
    from dcls_jax.models import create_model

    at_work()
    check_style(style, alpha, colormap)
    check_writable(out)
    built = create_model(model, dcls=dcls, num_classes=num_classes, weights=weights)
    manifest = pictures.explain_pictures(
        built,
        images,
        out,
        methods=list(dict.fromkeys(name.strip() for name in methods.split(","))),
        layers=list(dict.fromkeys(layer or [])),
        combine=combine,
        target=target,
        top_k=top_k,
        augment=augment,
        eigen=eigen_smooth,
        style=style,
        alpha=alpha,
        colormap=colormap,
        name=model,
        details={"dcls": dcls, "weights": weights},
    )
    for row in manifest["pictures"]:
        if row["dead"]:
            dead = ", ".join(row["dead"])
            print(printable(f"nothing positive for {pictures.label(row)} in {row['file']}: {dead}"), file=sys.stderr)
    print(printable(f"maps: {out / 'maps.png'}, one by one: {out / 'overlays'}"))
    print(printable(f"raw maps: {out / 'maps.npz'}, manifest: {out / 'manifest.json'}"))


@evaluations.command("clickme")
@_command
def evaluate_clickme(
    paths: Annotated[list[str], typer.Argument(help="ClickMe's TFRecord files, their folder, or globs.")],
    model: Model,
    weights: Weights = "published",
    dcls: Dcls = False,
    method: Annotated[Literal["grad_cam", "threshold_grad_cam"], typer.Option(help="The study's method.")] = "grad_cam",
    protocol: Annotated[
        Literal["aligned", "published", "both"],
        typer.Option(help="Compare the field that the model sees, or as the study did the whole picture."),
    ] = "both",
    batch_size: Annotated[int, typer.Option(help="Images at a time, over all devices.")] = 32,
    num_classes: Annotated[int, typer.Option(help="How many classes the checkpoint has.")] = 1000,
    out: Annotated[Path, typer.Option(help="The folder for results folders; the same command resumes there.")] = Path(
        "results"
    ),
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count damaged records and go on.")] = False,
) -> None:
    """How well a model's maps agree with people's clicks: Spearman's correlation over the human ceiling."""
    from dcls_jax.eval import clickme
    from dcls_jax.eval.report import print_results
    from dcls_jax.eval.results import check_writable
    from dcls_jax.models import create_model

    at_work()
    name = f"{model}_dcls" if dcls else model
    folder = out / f"clickme-{name}-{method}-{protocol}"
    check_writable(folder)
    built = create_model(model, dcls=dcls, num_classes=num_classes, weights=weights)
    results = clickme.evaluate_protocols(
        built,
        paths,
        clickme.PROTOCOLS if protocol == "both" else (protocol,),
        method=method,
        batch_size=batch_size,
        out=folder,
        skip_bad=skip_bad,
        name=name,
    )
    print_results(results)
    print(printable(f"results: {folder}"))


@app.command()
@_command
def convert(
    source: Annotated[Path, typer.Argument(help=f"A checkpoint: {_CHECKPOINT}.")],
    destination: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    model: Model,
    dcls: Annotated[bool, typer.Option("--dcls", help="The checkpoint is of the model with DCLS.")] = False,
    num_classes: Annotated[int, typer.Option(help="How many classes the checkpoint has.")] = 1000,
    swap_positions: Annotated[
        bool,
        typer.Option(
            "--swap-positions", help="Exchange the axes of positions: v0 checkpoints made with dcls 0.0.2 to 0.0.5."
        ),
    ] = False,
) -> None:
    """Convert a published PyTorch checkpoint to an Orbax checkpoint, and check the result."""
    import jax

    from dcls_jax.eval.results import check_writable
    from dcls_jax.models import create_model
    from dcls_jax.models.convert import check_paths, convert

    at_work()
    check_paths(source, destination)
    check_writable(destination.expanduser().parent)
    built = create_model(model, dcls=dcls, num_classes=num_classes)
    check_writable(destination.expanduser().parent, sum(leaf.nbytes for leaf in jax.tree.leaves(built)))
    result = convert(source, destination, built, swap_positions=swap_positions)
    print(f"model               {model}{' with DCLS' if dcls else ''}")
    print(f"parameters          {result.parameters:,}")
    print(f"largest difference  {result.largest_difference} (read back and compared)")
    print(printable(f"written to          {result.destination}"))


@app.command()
@_command
def models() -> None:
    """List the models, what they cost, and what they are made for."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dcls_jax import native
    from dcls_jax.methods import FASTEST
    from dcls_jax.models.describe import descriptions

    table = Table(title="Models; multiply-adds and explained activation for one image", box=box.SIMPLE_HEAD)
    for column in ("model", "parameters", "GMACs", "activation", "resize, crop"):
        table.add_column(column, justify="right" if column in ("parameters", "GMACs") else "left", no_wrap=True)
    table.add_column("published checkpoint", overflow="fold")
    for it in descriptions():
        table.add_row(
            f"{it.name} --dcls" if it.dcls else it.name,
            f"{it.parameters:,}",
            f"{it.macs / 1e9:.2f}",
            "x".join(map(str, it.activation)),
            f"{it.transform.resize}, {it.transform.crop}",
            it.checkpoint,
        )
    Console().print(table)
    kernels = "the native kernels" if native.available() else "no native kernels, which were not built at install"
    print(f"depthwise convolution: on {', '.join(FASTEST)} what was measured fastest for each shape, with {kernels};")
    print("on other platforms XLA's own, as nothing was measured there")


converter = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
converter.command()(convert)

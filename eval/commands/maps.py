"""The commands that draw."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcls_jax.eval.cli import at_work, printable
from dcls_jax.eval.commands.options import CHECKPOINT, Dcls, Dtype, Model, NumClasses, Weights, built, command
from dcls_jax.files import as_path


@command
def positions(
    checkpoints: Annotated[
        list[str], typer.Argument(help=f"{CHECKPOINT}; several, such as epochs of a run, in order.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Its name, of `dcls-jax models`; not needed where NAME.json beside says it."
        ),
    ] = None,
    num_classes: NumClasses = 1000,
    fields: Annotated[
        bool, typer.Option("--fields/--no-fields", help="Also what a feature in the middle sees.")
    ] = True,
    out: Annotated[Path, typer.Option(help="The folder for positions.png and layers.png.")] = Path("results/positions"),
) -> None:
    """Draw where learned elements lie: for each stage, checkpoint by checkpoint, and for each layer of the last."""
    from dcls_jax.eval.positions import layers_grid, positions_grid
    from dcls_jax.eval.results import check_writable
    from dcls_jax.models import load_model

    at_work()
    check_writable(out)
    models = {
        name: built(model, name, dcls=True, num_classes=num_classes) if model else load_model(name)
        for name in dict.fromkeys(checkpoints)
    }
    out.mkdir(parents=True, exist_ok=True)
    *_, last = models.values()
    layers = layers_grid(last)
    titles = shortest([*models])
    positions_grid(dict(zip(titles, models.values(), strict=True)), fields=fields).save(out / "positions.png")
    layers.save(out / "layers.png")
    print(printable(f"where elements lie: {out / 'positions.png'}, layer by layer: {out / 'layers.png'}"))


def shortest(paths: Sequence[str]) -> list[str]:
    """The ends of paths, as long as it takes to tell them apart."""
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        if len({it[-length:] for it in parts}) == len(parts):
            return ["/".join(it[-length:]) for it in parts]
    return list(paths)


@command
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
    num_classes: NumClasses = 1000,
    dtype: Dtype = "float32",
    out: Annotated[
        Path,
        typer.Option(
            parser=as_path, metavar="FOLDER", help="For maps.png, overlays/, maps.npz and manifest.json, or a URL."
        ),
    ] = Path("results/cam"),
) -> None:
    """Draw class activation maps of pictures: a grid, each map by itself, the raw maps, and a manifest."""
    from dcls_jax.cam.styles import check_style
    from dcls_jax.eval import pictures
    from dcls_jax.eval.results import check_writable

    at_work()
    check_style(style, alpha, colormap)
    check_writable(out)
    manifest = pictures.explain_pictures(
        built(model, weights, dcls=dcls, num_classes=num_classes, dtype=dtype),
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
        details={"dcls": dcls, "weights": weights, "dtype": dtype},
    )
    for row in manifest["pictures"]:
        if row["dead"]:
            dead = ", ".join(row["dead"])
            print(printable(f"nothing positive for {pictures.label(row)} in {row['file']}: {dead}"), file=sys.stderr)
    print(printable(f"maps: {out / 'maps.png'}, one by one: {out / 'overlays'}"))
    print(printable(f"raw maps: {out / 'maps.npz'}, manifest: {out / 'manifest.json'}"))

"""The commands that evaluate maps and models."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcls_jax.eval.cli import at_work, printable
from dcls_jax.eval.commands.options import (
    Dtype,
    Pictures,
    Subject,
    command,
    is_first,
    labelled,
    parameters,
    spread,
    start,
)
from dcls_jax.files import as_path

if TYPE_CHECKING:
    from dcls_jax.eval.metric import Result, Settings

evaluations = typer.Typer(no_args_is_help=True, help="Evaluate the maps of a model on a data set.")


@command
def demo(
    out: Annotated[
        Path, typer.Option(parser=as_path, metavar="FOLDER", help="The folder for results and pictures, or a URL.")
    ] = Path("results/demo"),
    dtype: Dtype = "float32",
) -> None:
    """Evaluate two small models on a small sample, both in the package: the whole pipeline, offline, in a minute."""
    from dcls_jax.eval import demo
    from dcls_jax.eval.report import print_results

    at_work()
    print_results(demo.run(out, dtype=dtype))
    print(printable(f"maps: {out / 'maps.png'}\nresults: {out}\nreport: {out / 'report.html'}"))


def evaluation(name: str) -> Callable[[Callable[..., Sequence["Result"]]], None]:
    """Makes `dcls-jax eval NAME` of a function (subject, settings, its own options) -> results.

    The command has the options of `Subject` too; its folder is named after evaluation, model and its own options.
    """

    def register(function: Callable[..., Sequence["Result"]]) -> None:
        own = parameters(function)[2:]

        @wraps(function)
        def evaluate(subject: Subject, **chosen: Any) -> None:
            from dcls_jax.eval.report import print_results

            start(subject.distributed)
            tags = [value for value in chosen.values() if value and isinstance(value, str)]
            folder = subject.out / "-".join((name, subject.name, *tags))
            results = function(subject, subject.settings(folder), **chosen)
            if is_first():
                print_results(results)
                print(printable(f"results: {folder}"))

        evaluations.command(name)(command(spread(Subject, own, evaluate)))

    return register


Method = Annotated[
    str, typer.Option(help="A method of `dcls-jax cam`; grad_cam and threshold_grad_cam are as in the study.")
]
Presets = Annotated[str, typer.Option(help="What is measured: presets of docs/evaluation.md, separated by commas.")]


def names(presets: str) -> list[str]:
    """Those of an option, without those that come twice."""
    return list(dict.fromkeys(name.strip() for name in presets.split(",") if name.strip()))


@evaluation("clickme")
def _clickme(
    subject: Subject,
    settings: "Settings",
    paths: Annotated[list[str], typer.Argument(help="ClickMe's TFRecord files, their folder, or globs.")],
    method: Method = "grad_cam",
    protocol: Annotated[
        Literal["aligned", "published", "both"],
        typer.Option(help="Compare the field that the model sees, or as the study did the whole picture."),
    ] = "both",
) -> Sequence["Result"]:
    """How well a model's maps agree with people's clicks: Spearman's correlation over the human ceiling."""
    from dcls_jax.eval import clickme

    clickme.check_choice(method)
    protocols = clickme.PROTOCOLS if protocol == "both" else (protocol,)
    return clickme.evaluate_protocols(subject.build(), paths, protocols, method=method, settings=settings)


@evaluation("accuracy")
def _accuracy(
    subject: Subject,
    settings: "Settings",
    pictures: Pictures = None,
) -> Sequence["Result"]:
    """How often a model is right, at once or in five guesses, beside what was published of its weights."""
    from dcls_jax.eval import accuracy
    from dcls_jax.eval.metric import classes_of

    samples, model = labelled(pictures), subject.build()
    k = [number for number in (1, 5) if number == 1 or number <= classes_of(model, model.transform)]
    return [accuracy.evaluate(model, samples, settings, k=k, published=subject.accuracy())]


@evaluation("faithfulness")
def _faithfulness(
    subject: Subject,
    settings: "Settings",
    pictures: Annotated[
        Path | None,
        typer.Argument(help="A folder, with pictures anywhere below; else ImageNet's validation split of TFDS."),
    ] = None,
    method: Method = "grad_cam",
    presets: Presets = "rise",
) -> Sequence["Result"]:
    """What a model's confidence does when what its maps call important goes, comes or changes."""
    from dcls_jax.eval import faithfulness
    from dcls_jax.eval.data.folder import Pictures
    from dcls_jax.eval.data.imagenet import ImageNet

    chosen = faithfulness.check_choice(method, names(presets))
    samples = ImageNet() if pictures is None else Pictures(pictures)
    return faithfulness.evaluate(subject.build(), samples, settings, method=method, presets=chosen)


@evaluation("localisation")
def _localisation(
    subject: Subject,
    settings: "Settings",
    data: Annotated[
        Literal["imagenet", "voc", "voc_masks", "coco2014", "coco2017"],
        typer.Argument(help="On what: ImageNet's and VOC 2007's boxes, VOC 2012's and COCO's masks."),
    ],
    pictures: Annotated[
        Path | None,
        typer.Option(help="Where the pictures are: a folder, for voc_masks VOCdevkit/VOC2012; unless given, TFDS's."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="ImageNet's boxes, a folder of clovaai/wsolevaluation; COCO's masks, instances_*.json."),
    ] = None,
    method: Method = "grad_cam",
    presets: Presets = "",
) -> Sequence["Result"]:
    """Whether a model's maps are where the objects are; unless given, all presets of the data."""
    from dcls_jax.eval import localisation
    from dcls_jax.eval.localisation.datasets import PRESETS_OF, source_of

    chosen = localisation.check_choice(method, names(presets) or PRESETS_OF[data])
    samples = source_of(data, pictures, annotations)
    return localisation.evaluate(subject.build(), samples, settings, method=method, presets=chosen)


@evaluation("sanity")
def _sanity(
    subject: Subject,
    settings: "Settings",
    pictures: Pictures = None,
    method: Annotated[str, typer.Option(help="Any method that `dcls-jax cam` has.")] = "grad_cam",
    order: Annotated[
        Literal["cascading", "independent"], typer.Option(help="A layer and all above it are random, or it alone.")
    ] = "cascading",
    preset: Annotated[
        Literal["standard", "adebayo"], typer.Option(help="How maps are compared: on both axes, or as was published.")
    ] = "standard",
    seed: Annotated[int, typer.Option(help="Of the random layers.")] = 0,
) -> Sequence["Result"]:
    """How alike a model's maps stay while its layers become random; the less, the more they show what was learned."""
    from dcls_jax.eval import sanity

    samples = labelled(pictures)
    return sanity.evaluate(subject.build(), samples, settings, method=method, order=order, preset=preset, seed=seed)

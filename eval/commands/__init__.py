"""The commands of `dcls-jax`. What one needs is imported when it runs, so that --help is there at once."""

import typer

from dcls_jax.eval.commands import evaluation, maps, models, report, suites, train

app = typer.Typer(
    name="dcls-jax",
    help="Study what vision models look at: class activation maps, and how well they agree with people.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_COMMANDS = (
    evaluation.demo,
    maps.cam,
    models.convert,
    models.models,
    train.train,
    train.finetune,
    maps.positions,
    suites.suite,
    suites.study,
    report.report,
)
for function in _COMMANDS:
    app.command()(function)
app.add_typer(evaluation.evaluations, name="eval")

converter = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
converter.command()(models.convert)

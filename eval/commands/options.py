"""What several commands have in common."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from dcls_jax.eval.cli import Stopped, at_work, end

Model = Annotated[str, typer.Option("--model", "-m", help="A name that `dcls-jax models` lists.")]
Dcls = Annotated[bool, typer.Option("--dcls", help="The model with DCLS, in its published setting.")]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        "-w",
        help="A checkpoint: .pth, .pth.tar, .safetensors or Orbax folder; or 'published' to download it.",
    ),
]
NumClasses = Annotated[int, typer.Option(help="How many classes the checkpoint has.")]


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

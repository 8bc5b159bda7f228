"""The entry points of the commands: errors and signals in one line. The commands themselves are in `commands/`.

What this module imports is there at once, so that little of the start is left in which Python itself meets Ctrl-C.
"""

import atexit
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType

_SIGNALS = signal.SIGINT, signal.SIGTERM
_at_work = False  # what is open should be closed
_last: list[Callable[[], object]] = []  # what is done at the end, whichever it is


class Stopped(KeyboardInterrupt):
    """A signal that came while the command was at work."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main() -> None:
    """The entry point of `dcls-jax`."""

    def command() -> None:
        from dcls_jax.eval.commands import app

        app()

    run(command)


def convert_weights() -> None:
    """The entry point of `convert_weights.py`: `dcls-jax convert` as a command of its own."""

    def command() -> None:
        from dcls_jax.eval.commands import converter

        converter()

    run(command)


def run(command: Callable[[], object]) -> None:
    """Run a command line: errors of use and of data are one line, exit code 1; so are Ctrl-C, 130, and SIGTERM, 143.

    A warning is a line too.
    """
    show, warnings.showwarning = warnings.showwarning, lambda message, *_, **__: say(f"warning: {message}", "33")
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        command()
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        say(f"error: {error}", "31")
        sys.exit(1)
    finally:
        warnings.showwarning = show
        at_work(False)


def at_work(now: bool = True) -> None:
    """While it is, a signal is an exception, which lets what is open be closed; before and after, it is the end."""
    global _at_work
    _at_work = now


def at_end(function: Callable[[], object]) -> None:
    """Have a function called when the process ends, by a signal or not."""
    _last.append(function)
    atexit.register(function)


def end(number: int) -> None:
    """Say that a signal stopped the command, and end it there: whatever Python would still clean up might complain."""
    os.write(2, f"{_farewell()}\n".encode())
    for function in _last:
        function()
    os._exit(128 + number)


def _stop(number: int, _: FrameType | None) -> None:
    if not _at_work:
        end(number)
    at_work(False)  # a second signal does not wait
    logging.disable()  # what libraries say of being stopped is no news
    sys.unraisablehook = lambda lost: end(number) if isinstance(lost.exc_value, Stopped) else None
    raise Stopped(number)


def _farewell() -> str:
    goes_on = sys.argv[1:2] in (["demo"], ["eval"], ["train"], ["finetune"])
    return "stopped; the same command goes on from here" if goes_on else "stopped"


def command_line() -> str:
    """The command, as it may be typed again."""
    return shlex.join(["dcls-jax", *sys.argv[1:]])


def say(line: str, colour: str) -> None:
    """Print a line to stderr, on a terminal in a colour, by its ANSI code."""
    shown = printable(line)
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        shown = f"\x1b[{colour}m{shown}\x1b[0m"
    print(shown, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text as any terminal takes it: control characters, and what is no Unicode, are escaped; lines are kept."""
    return "".join(it if it.isprintable() or it == "\n" else it.encode("unicode_escape").decode() for it in text)

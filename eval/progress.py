"""How far a run is: a bar, or lines where there is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_REPORT_SECONDS = 10.0  # between two lines where no bar can be drawn


class _Speed(ProgressColumn):
    """Records, or whatever they are called, per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")


class Advance(Protocol):
    """Told of records just done, and what may be said of them; what was said last stays."""

    def __call__(self, count: int, note: str = "", /) -> None: ...


@contextmanager
def progress_of(total: int, shown: bool, unit: str = "records") -> Iterator[Advance]:
    """A function to call with the number of records just done: draws a bar, or prints lines if there is no terminal."""
    if not shown or not total:
        yield lambda count, note="": None
    elif sys.stderr.isatty():
        left = TimeRemainingColumn(), TextColumn("left {task.description}")
        with Progress(BarColumn(), MofNCompleteColumn(), _Speed(unit), *left, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda count, note="": bar.update(task, advance=count, description=note or None)
    else:
        yield _lines(total, unit)


def _lines(total: int, unit: str) -> Advance:
    start = last = time.monotonic()
    done, said = 0, ""

    def advance(count: int, note: str = "", /) -> None:
        nonlocal done, last, said
        done, said = done + count, f", {note}" if note else said
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or done == total:
            last, speed = now, done / max(now - start, 1e-9)
            left = (total - done) / speed
            line = f"{done}/{total} {unit}, {speed:.1f} {unit}/s, {left:.0f} s left{said}"
            print(line, file=sys.stderr, flush=True)

    return advance

"""How far a run is: a bar, or lines where there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_REPORT_SECONDS = 10.0  # between two lines where no bar can be drawn


class _Speed(ProgressColumn):
    """Records per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} records/s" if task.speed else "")


@contextmanager
def progress_of(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of records just done: draws a bar, or prints lines if there is no terminal."""
    if not shown or not total:
        yield lambda _: None
    elif sys.stderr.isatty():
        columns = BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn(), TextColumn("left")
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _lines(total)


def _lines(total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or done == total:
            last, speed = now, done / max(now - start, 1e-9)
            left = (total - done) / speed
            print(f"{done}/{total} records, {speed:.1f} records/s, {left:.0f} s left", file=sys.stderr, flush=True)

    return advance

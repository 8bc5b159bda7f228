"""Errors of other libraries, Orbax and TensorStore above all, in one line."""

import contextlib
import gc
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SILENCE = 0.2  # seconds after which threads have said what they have to say of an error


def reason(error: BaseException) -> str:
    """An error's own words in one line."""
    return re.split(r"\. |\n", str(error))[0][:300] or type(error).__name__


def system_error(error: Exception, folder: Path) -> OSError:
    """What is said where a checkpoint could not be written: the system's own words where it is an error of it."""
    if number := _number(error):
        return OSError(number, os.strerror(number), str(folder))
    return OSError(f"the checkpoint {folder} could not be written: {reason(error)}")


def _number(error: Exception) -> int | None:
    """The system's number of an error, of which TensorStore keeps the text alone."""
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(found[1])
    return error.errno if isinstance(error, OSError) else None


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """An error of Orbax is raised and no more: its threads and TensorStore's log and print pages of it besides."""
    hook = sys.unraisablehook
    heard: list[float] = []
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]

    def unless_closed(lost: Any) -> None:
        if str(lost.exc_value) == "Event loop is closed":
            heard.append(time.monotonic())
        else:
            hook(lost)

    def no_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    sys.unraisablehook = unless_closed
    for logger in loggers:
        logger.addFilter(no_error)
    try:
        yield
    except Exception:
        gc.collect()  # tasks whose errors nobody asked for say so in the end
        heard.append(time.monotonic())
        while time.monotonic() - heard[-1] < _SILENCE:
            time.sleep(_SILENCE / 10)
        raise
    finally:
        sys.unraisablehook = hook
        for logger in loggers:
            logger.removeFilter(no_error)

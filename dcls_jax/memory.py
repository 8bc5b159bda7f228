"""What a compiled program needs of a device's memory, and what the device has."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

_GIB = 2**30


class TooLargeError(ValueError):
    """A program that does not fit into a device's memory; the message says what to lower."""


def peak(compiled: Any) -> int | None:
    """Bytes that a compiled program holds at most on each device, arguments and results among them; None: not told."""
    with suppress(jax.errors.JaxRuntimeError, NotImplementedError):  # which platforms raise that do not tell
        if it := compiled.memory_analysis():
            whole = it.temp_size_in_bytes + it.argument_size_in_bytes + it.output_size_in_bytes
            return int(whole - it.alias_size_in_bytes)
    return None


def free(device: Any) -> int | None:
    """Bytes that a device has left; of CPU devices each its share of the machine's. None: not told."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    with suppress(OSError):
        if device.platform == "cpu" and (found := re.search(r"MemAvailable: *(\d+) kB", _meminfo())):
            return int(found[1]) * 1024 // jax.local_device_count()
    return None


def check_fits(needed: int | None, device: Any, what: str, lower: str) -> None:
    """Raise TooLargeError where a device has less memory left than is needed beside what it holds."""
    left = free(device)
    if needed is not None and left is not None and needed > left:
        raise TooLargeError(
            f"{what} needs {needed / _GIB:.1f} GiB of a device that has {left / _GIB:.1f} GiB left; lower {lower}"
        )


@contextmanager
def saying(what: str, lower: str) -> Iterator[None]:
    """Raise TooLargeError where a device says that its memory does not do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLargeError(f"{what} does not fit into a device's memory; lower {lower}") from error


def _meminfo() -> str:
    return Path("/proc/meminfo").read_text()

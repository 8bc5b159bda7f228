"""A folder of an object store held by one run at a time: by a lease, which lasts as long as its run renews it.

The store has no locks that end with their process. Who holds the folder is the object `lock-000001`, or the last of
that name: made by a conditional put, so that one of several wins; written anew while its run lives; empty once it let
go. One that is not renewed is of a run that is dead, and the next takes the next number. No clocks are compared.
"""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dcls_jax.files import create, read_bytes, write_bytes
from dcls_jax.models.locks import InUseError, now

RENEWED = 5.0  # seconds from one renewal to the next
LAPSES = 20.0  # seconds without one, after which a run is taken for dead


def hold(folder: Path) -> Callable[[], None]:
    """Hold a folder until the function returned is called, or this process ends.

    Raises InUseError, naming who holds it, once that is seen to live; where it does not, it takes `LAPSES` seconds.
    """
    who = f"process {os.getpid()} on {socket.gethostname()} since {now()}"
    while True:
        held = sorted(folder.glob("lock-*"))
        if held and (holder := _living(held[-1])):
            raise InUseError(f"{folder} is in use by {holder}; wait for it to end, or choose another folder")
        number = int(held[-1].name.removeprefix("lock-")) + 1 if held else 1
        ours = folder / f"lock-{number:06d}"
        with suppress(FileExistsError):
            create(ours, f"{who}\n0".encode())
            break
    for older in held:
        with suppress(OSError):
            older.unlink()
    return _renewing(ours, who)


def _living(lock: Path) -> str:
    """Who holds a lock, once it is seen to be renewed; "" if nobody does."""
    before, start = _content(lock), time.monotonic()
    while before and time.monotonic() - start < LAPSES:
        time.sleep(RENEWED / 10)
        if (content := _content(lock)) != before:
            return content.partition("\n")[0]
    return ""


def _content(lock: Path) -> str:
    try:
        return read_bytes(lock).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _renewing(lock: Path, who: str) -> Callable[[], None]:
    """Renew a lock in a thread, until the function returned is called, which lets go of it."""
    released = threading.Event()

    def renew() -> None:
        for count in itertools.count(1):
            if released.wait(RENEWED):
                return
            with suppress(Exception):  # the next may succeed
                write_bytes(lock, f"{who}\n{count}".encode())

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()

    def release() -> None:
        released.set()
        thread.join()
        with suppress(Exception):  # it lapses by itself
            write_bytes(lock, b"")

    return release

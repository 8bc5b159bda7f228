"""A folder held by one process at a time."""

import errno
import os
import socket
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_WITHOUT_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP


class ResultsError(ValueError):
    """A folder in use, or with another run's results, or with damaged ones; the message says which and what to do."""


def hold(folder: Path) -> int:
    """Hold a folder, by a lock on its file `lock`, until the descriptor returned is closed or the process ends.

    The system lets go of the lock however the process ends, `kill -9` included; the file stays, and means nothing by
    itself. Between hosts it holds where their file system has such locks: NFS, Lustre mounted with `flock`. On one that
    has none, and on Windows, nothing is held.
    Raises ResultsError, naming who holds the folder, and OSError where the file cannot be written.
    """
    path = folder / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        _lock(file)
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {now()}".encode())
    except BlockingIOError:
        holder = os.read(file, 1000).decode(errors="replace") or "another process"
        os.close(file)
        raise ResultsError(f"{folder} is in use by {holder}; wait for it to end, or choose another folder") from None
    except OSError as error:
        os.close(file)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return file


def _lock(file: int) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise


def now() -> str:
    """The time, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S%z")

"""What one process at a time may write, kept by locks of the system."""

import errno
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_WITHOUT_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP


class InUseError(OSError):
    """What another process, or another thread of this one, is writing; the message says who and since when."""


def hold(folder: Path, what: Path | None = None) -> int:
    """Hold a folder, by a lock on its file `lock`, until the descriptor returned is closed or the process ends.

    The system lets go of the lock however the process ends, `kill -9` included; the file stays, and means nothing by
    itself. Between hosts it holds where their file system has such locks: NFS, Lustre mounted with `flock`. On one that
    has none, and on Windows, nothing is held.
    what: is in use where the folder is; the folder unless given.
    Raises InUseError, naming who holds the folder, and OSError where there can be no such file.
    """
    path = folder / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        _lock(file, path)
    except BlockingIOError:
        holder = os.read(file, 1000).decode(errors="replace") or "another process"
        os.close(file)
        place = what or folder
        raise InUseError(f"{place} is in use by {holder}; wait for it to end, or choose another folder") from None
    except OSError as error:
        os.close(file)
        raise OSError(error.errno, error.strerror, str(path)) from error
    with suppress(OSError):  # a full disk leaves no room for who it is
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {now()}".encode())
    return file


def _lock(file: int, path: Path) -> None:
    """Lock an open file. Raises BlockingIOError where another has, or had and removed it since it was opened."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    if not path.exists() or not os.path.samestat(os.fstat(file), path.stat()):
        raise BlockingIOError


def now() -> str:
    """The time, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S%z")

"""The processes of one job (`jax.distributed`): how they join, meet, come late and fail by themselves."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from dcls_jax.eval.cli import at_end

LOST_AFTER = 20  # seconds without a sign of life of a process, after which the others end
_GOES_ON = "the same command, in every process, goes on from here"
_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds; of processes that died JAX tells sooner
_WATCH = "import sys; sys.stdin.buffer.read() or print(sys.argv[1], file=sys.stderr)"
_meetings = itertools.count()  # every process counts the same


class LostError(OSError):
    """A process of the job is gone."""


def join() -> None:
    """Join the processes of one job, before anything touches a device.

    SLURM, GKE, Cloud TPU and Open MPI tell JAX who they are; elsewhere JAX_COORDINATOR_ADDRESS (host:port of process
    0), JAX_NUM_PROCESSES and JAX_PROCESS_ID do. Where a process is lost, the others end within `LOST_AFTER` seconds.
    Raises ValueError where neither says it.
    """
    count, index = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    jax.config.update("jax_enable_preemption_service", False)  # which would keep SIGTERM from the command
    _say_at_abort(f"error: the job lost a process, or did not come together; {_GOES_ON}")
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
            heartbeat_timeout_seconds=LOST_AFTER,
            shutdown_timeout_seconds=LOST_AFTER,
        )
    except ValueError as error:
        raise ValueError(
            f"no job of several processes is found ({error}): neither of SLURM, GKE, Cloud TPU or Open MPI, nor by "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def _say_at_abort(line: str) -> None:
    """Have a line said where JAX ends this process, as it does when another is lost, with pages that say it at length.

    A small process of its own says it: it is told of an orderly end, and else sees that its pipe is closed.
    """
    watch = subprocess.Popen([sys.executable, "-c", _WATCH, line], stdin=subprocess.PIPE, start_new_session=True)

    def orderly() -> None:
        watch.communicate(b".")

    at_end(orderly)


@contextmanager
def together() -> Iterator[None]:
    """At the end of the block every process of the job waits for all others; where it fails in one, it fails in all.

    They wait at JAX's coordination service: a collective of devices, Gloo's for one, gives up after seconds.
    Raises RuntimeError, naming those in which the block failed, in those where it did not; LostError where a process is
    gone.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except Exception:
        _failed(True)
        raise
    failed = _failed(False)
    if failed:
        raise RuntimeError(f"failed in process {', '.join(map(str, failed))} of {jax.process_count()}, which says why")


def _failed(here: bool) -> list[int]:
    """The processes that say they failed, once all are here."""
    from orbax.checkpoint import multihost

    try:
        multihost.get_barrier_sync_fn()(key=f"dcls_jax.eval.hosts {next(_meetings)}", timeout_ms=_PATIENCE)
        return np.flatnonzero(multihost_utils.process_allgather(np.asarray(here))).tolist()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostError(f"a process of the {jax.process_count()} is lost; {_GOES_ON} ({reason:.200})") from error

"""The processes of one job (`jax.distributed`), which come late and fail by themselves."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds; of processes that died JAX tells sooner
_meetings = itertools.count()  # every process counts the same


@contextmanager
def together() -> Iterator[None]:
    """At the end of the block every process of the job waits for all others; where it fails in one, it fails in all.

    They wait at JAX's coordination service: a collective of devices, Gloo's for one, gives up after seconds.
    Raises RuntimeError, naming those in which the block failed, in those where it did not.
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

    multihost.get_barrier_sync_fn()(key=f"dcls_jax.eval.hosts {next(_meetings)}", timeout_ms=_PATIENCE)
    return np.flatnonzero(multihost_utils.process_allgather(np.asarray(here))).tolist()

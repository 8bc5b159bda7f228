"""A results folder held by one run at a time."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dcls_jax.eval import leases
from dcls_jax.files import is_remote
from dcls_jax.models import locks
from dcls_jax.models.locks import InUseError


class ResultsError(ValueError):
    """A folder in use, or with another run's results, or with damaged ones; the message says which and what to do."""


def hold(folder: Path) -> Callable[[], None]:
    """Hold a folder until the function returned is called: on a disk by `models.locks.hold`, else by `leases.hold`.

    Raises ResultsError, naming who holds it, and OSError.
    """
    try:
        return leases.hold(folder) if is_remote(folder) else partial(os.close, locks.hold(folder))
    except InUseError as error:
        raise ResultsError(str(error)) from None

"""A results folder held by one run at a time."""

from pathlib import Path

from dcls_jax.models import locks
from dcls_jax.models.locks import InUseError


class ResultsError(ValueError):
    """A folder in use, or with another run's results, or with damaged ones; the message says which and what to do."""


def hold(folder: Path) -> int:
    """Hold a folder as `models.locks.hold` does. Raises ResultsError, naming who holds it, and OSError."""
    try:
        return locks.hold(folder)
    except InUseError as error:
        raise ResultsError(str(error)) from None

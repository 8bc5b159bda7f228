"""Why a record counts, or does not: the status that travels with every score."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple


class Status(StrEnum):
    """What became of a record, in the words of tables. Results folders hold their order: new ones go to the end."""

    COUNTED = "counted"
    CONSTANT = "constant map"
    NOT_FINITE = "not finite"
    EMPTY = "empty mask"
    DIFFICULT = "difficult"
    EASY = "not difficult"
    TOO_LARGE = "too large"
    SEVERAL = "several boxes"
    UNREADABLE = "unreadable"

    @property
    def code(self) -> int:
        """Its number in arrays, 0 for what counts."""
        return _CODES[self]


_CODES = {status: code for code, status in enumerate(Status)}


class Scores(NamedTuple):
    """What records reached: values (B, ...) by name, and the code of each record's status (B,), int8.

    Values of records that do not count mean nothing. On the host, of one record, without the leading axis.
    """

    values: Mapping[str, Any]
    status: Any

"""Why an image counts, or does not: the status that travels with every score."""

from enum import StrEnum


class Status(StrEnum):
    """What became of one image, or of one class in it."""

    COUNTED = "counted"
    CONSTANT = "constant map"
    NOT_FINITE = "not finite"
    EMPTY = "empty mask"
    DIFFICULT = "difficult"  # every object of the class is marked so in the annotations
    EASY = "not difficult"  # what the difficult subset leaves out
    TOO_LARGE = "too large"
    SEVERAL = "several boxes"
    UNREADABLE = "unreadable"

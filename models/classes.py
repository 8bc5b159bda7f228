"""What the classes of ImageNet-1k are called."""

from functools import cache
from importlib.resources import files


@cache
def imagenet_classes() -> tuple[str, ...]:
    """ImageNet-1k's 1000 classes by number, as torchvision and Keras order them: a short name each.

    WordNet's first name of the class; in brackets which one is meant where two classes share a name.
    """
    return tuple(files("dcls_jax.models").joinpath("imagenet_classes.txt").read_text("utf-8").splitlines())

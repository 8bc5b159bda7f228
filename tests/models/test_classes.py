"""Names of ImageNet's classes."""

import pytest

from dcls_jax.models import imagenet_classes


def test_a_thousand_names_no_two_alike():
    names = imagenet_classes()
    assert len(names) == len({name.casefold() for name in names}) == 1000
    assert all(name == name.strip() and name.isprintable() and 0 < len(name) <= 40 for name in names)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "tench"),
        (1, "goldfish"),
        (134, "crane (bird)"),
        (207, "golden retriever"),
        (281, "tabby"),
        (282, "tiger cat"),
        (285, "Egyptian cat"),
        (340, "zebra"),
        (386, "African elephant"),
        (388, "giant panda"),
        (409, "analog clock"),
        (463, "bucket"),
        (517, "crane (machine)"),
        (530, "digital clock"),
        (609, "jeep"),
        (638, "maillot"),
        (639, "maillot (tank suit)"),
        (817, "sports car"),
        (954, "banana"),
        (963, "pizza"),
        (980, "volcano"),
        (999, "toilet tissue"),
    ],
)
def test_names_are_in_the_published_order(number, name):
    assert imagenet_classes()[number] == name

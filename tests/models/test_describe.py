"""The kept table of all models is what tracing them gives."""

import pytest

from dcls_jax.models import list_models
from dcls_jax.models.describe import describe, descriptions
from tests.conftest import slow
from tests.models.small import FAMILIES


def test_the_table_has_every_model_once():
    assert [(it.name, it.dcls) for it in descriptions()] == [
        (name, dcls) for name in list_models() for dcls in (False, True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dcls", [False, True])
@pytest.mark.parametrize("name", list_models())
def test_the_table_is_what_tracing_gives(name, dcls):
    (kept,) = [it for it in descriptions() if (it.name, it.dcls) == (name, dcls)]
    assert describe(name, dcls=dcls) == kept


GIGA_MACS = {  # of the originals at 224 x 224, kernels constructed
    ("convnext_tiny", False): 4.456,
    ("convnext_tiny", True): 4.970,
    ("convnext_small", True): 9.524,
    ("convnext_base", False): 15.355,
}


@pytest.mark.parametrize(("name", "dcls"), [case if case[0] in FAMILIES else slow(*case) for case in GIGA_MACS])
def test_description_counts_the_originals_macs(name, dcls):
    description = describe(name, dcls=dcls, size=224)
    assert round(description.macs / 1e9, 3) == GIGA_MACS[name, dcls]
    assert description.checkpoint

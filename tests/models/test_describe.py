"""The kept table of all models is what tracing them gives."""

import pytest

from dcls_jax.models import list_models
from dcls_jax.models.describe import describe, descriptions


def test_the_table_has_every_model_once():
    assert [(it.name, it.dcls) for it in descriptions()] == [
        (name, dcls) for name in list_models() for dcls in (False, True)
    ]


@pytest.mark.parametrize("kept", descriptions(), ids=lambda it: f"{it.name}{'_dcls' if it.dcls else ''}")
def test_the_table_is_what_tracing_gives(kept):
    assert describe(kept.name, dcls=kept.dcls) == kept

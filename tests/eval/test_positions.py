"""Pictures of positions: elements are where they are, and a feature sees what it is made of."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dcls_jax import Conv, DclsConfig, Positions
from dcls_jax.eval import cli
from dcls_jax.eval.commands.maps import shortest
from dcls_jax.eval.positions import density, layers_grid, places, positions_grid, receptive_field, spread
from dcls_jax.models import Transform, create_model, save_model
from tests.conftest import random_model

DCLS = DclsConfig(2, 5, "v1")
SMALL = {"depths": (1, 2), "dims": (4, 8), "num_classes": 3, "transform": Transform(32, 32)}


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    return random_model(lambda: create_model("convnext_tiny", dcls=DCLS, **SMALL))


def at(*where: tuple[float, float], version: str = "v1") -> Positions:
    """Positions of one kernel on five by five cells."""
    positions = Positions((1, 1, len(where)), (5, 5), version, rngs=nnx.Rngs(0))
    positions.P[...] = jnp.asarray(where, jnp.float32).T[:, None, None]
    return positions


def test_elements_are_in_the_cells_where_they_lie() -> None:
    found = density(at((-2, 1), (0, 0.5)))
    expected = np.zeros((5, 5))
    expected[3, 0], expected[2, 2], expected[3, 2] = 1, 0.5, 0.5  # version 1 has columns first
    np.testing.assert_allclose(found, expected, atol=1e-6)
    weighted = density(at((-2, 1), (0, 0.5)), [jnp.array([[[-3.0, 0.0]]]), jnp.array([[[1.0, 0.0]]])])
    np.testing.assert_allclose(weighted, np.where(expected == 1, 2, 0), atol=1e-6)
    assert density(at((0, 0), (1, 1), version="gauss")).sum() == pytest.approx(2, rel=1e-4)
    assert spread(at((3, 4), (0, 0))) == pytest.approx(np.sqrt(12.5))


def test_whose_positions_they_are(model: nnx.Module) -> None:
    found = places(model)
    assert {owner: [name for name, _ in layers] for owner, (_, layers) in found.items()} == {
        "stages.0": ["stages.0.blocks.0.dwconv"],
        "stages.1": ["stages.1.blocks.0.dwconv", "stages.1.blocks.1.dwconv"],
    }
    with pytest.raises(ValueError, match="the model has no learned positions"):
        places(nnx.eval_shape(lambda: create_model("convnext_tiny", **SMALL)))


def test_a_feature_sees_its_pixels_alone() -> None:
    class Patches(nnx.Module):
        transform = Transform(12, 12)

        def __init__(self) -> None:
            self.conv = Conv(3, 2, (4, 4), stride=4, rngs=nnx.Rngs(0))

        def features(self, images):
            return self.conv(images)

    field = receptive_field(Patches(), images=2)  # type: ignore[arg-type]
    inside = np.zeros((12, 12), bool)
    inside[4:8, 4:8] = True
    assert (field[inside] > 0).all()
    assert (field[~inside] == 0).all()
    assert field.max() == 1


@pytest.mark.slow
def test_a_row_for_each_checkpoint_and_a_column_for_each_stage(model: nnx.Module) -> None:
    other = random_model(lambda: create_model("convnext_tiny", dcls=DCLS, **SMALL), seed=1)
    grid = positions_grid({"before": model, "after": other})
    assert grid.column_titles == ["stages.0", "stages.1", "receptive field"]
    assert (len(grid.rows), grid.row_titles) == (2, ["before", "after"])
    assert (np.asarray(grid.rows[0][1]) != np.asarray(grid.rows[1][1])).any()
    assert [[*names] for names in layers_grid(model).notes] == [
        ["stages.0.blocks.0.dwconv", "stages.1.blocks.0.dwconv"],
        ["", "stages.1.blocks.1.dwconv"],
    ]
    shallow = nnx.eval_shape(
        lambda: create_model("convnext_tiny", dcls=DCLS, **(SMALL | {"depths": (1,), "dims": (4,)}))
    )
    with pytest.raises(ValueError, match=r"other has positions in stages\.0, expected stages\.0, stages\.1"):
        positions_grid({"one": model, "other": shallow})


def test_titles_are_as_short_as_they_tell_apart() -> None:
    assert shortest(["run/epochs/0000", "run/epochs/0010"]) == ["0000", "0010"]
    assert shortest(["a/weights", "b/weights"]) == ["a/weights", "b/weights"]
    assert shortest(["one"]) == ["one"]


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: nnx.Module
) -> None:
    save_model(model, "convnext_tiny", tmp_path / "weights")
    monkeypatch.setattr(
        sys, "argv", ["dcls-jax", "positions", str(tmp_path / "weights"), "--no-fields", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "where elements lie:" in capsys.readouterr().out
    for name in ("positions.png", "layers.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert np.asarray(picture).std() > 20

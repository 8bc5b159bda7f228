"""Models as parts of other programs: dtypes, devices, views, new heads, several activations at once."""

import pickle
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dcls_jax import Dcls1d, Dcls2d, freeze
from dcls_jax.models import CheckpointError, create, load_weights, reparameterise, save_weights, state_dict
from tests.conftest import normal, random_model, slow
from tests.models.small import ONE, SOME, small

forward = jax.jit(lambda model, x: model(x))
features = jax.jit(lambda model, x: model.features(x))
pooled = jax.jit(lambda model, features: model.pool(features))


@pytest.fixture(params=SOME)
def name(request):
    return request.param


@pytest.fixture
def images():
    return normal(2, 32, 32, 3)


@pytest.mark.parametrize("name", ONE)
def test_dtypes_are_flaxs(name, images, assert_close):
    plain, half = random_model(lambda: small(name)), random_model(lambda: small(name, dtype=jnp.bfloat16))
    expected = forward(plain, images)
    for change in (lambda model: model, reparameterise):
        changed = nnx.eval_shape(change, half)
        activations = jax.eval_shape(lambda m, x: m.intermediates(x, m.layer_names()), changed, images)
        assert {a.dtype for a in activations.values()} == {jnp.dtype(jnp.bfloat16)}
        logits = jax.jit(lambda model, x: change(model)(x))(half, images)  # noqa: B023
        assert_close(np.asarray(logits, np.float32), expected, 0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype(jnp.float32)}
    kept = nnx.eval_shape(lambda: small(name, param_dtype=jnp.bfloat16))
    for path, leaf in nnx.to_flat_state(nnx.state(kept)):
        wide = path[-1] in ("P", "SIG", "mean", "var")
        assert leaf.dtype == (jnp.float32 if wide else jnp.bfloat16), path


def test_precision_reaches_every_layer(name):
    model = nnx.eval_shape(lambda: small(name, precision="highest"))
    layers = [module for _, module in nnx.iter_modules(model) if hasattr(module, "precision")]
    assert layers
    assert {layer.precision for layer in layers} == {"highest"}


@pytest.mark.usefixtures("strict")
def test_nothing_is_promoted_in_silence(name, images):
    assert jax.eval_shape(lambda model, x: model(x), nnx.eval_shape(lambda: small(name)), images).dtype == jnp.float32


def test_a_training_step_compiles_once(name, images):
    model = nnx.eval_shape(lambda: small(name, drop_path_rate=0.1))
    assert not any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(nnx.state(model)))
    with jax.enable_x64(True):
        wide = nnx.state(nnx.eval_shape(lambda: small(name)), nnx.Param)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype(jnp.float32)}


def test_views():
    model = random_model(lambda: small("resnet50", drop_path_rate=0.5))
    for setting in ({"use_running_average": False}, {"deterministic": False}):
        norm = nnx.view(model, **setting).stages[0].blocks[0].bn1
        assert not norm.use_running_average
    assert nnx.view(model, deterministic=False, use_running_average=True).stem.norm.use_running_average
    assert model.stem.norm.use_running_average


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE)
def test_pickles(name, images):
    model = small(name)
    np.testing.assert_array_equal(forward(pickle.loads(pickle.dumps(model)), images), forward(model, images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE)
def test_flax_tabulates(name, images):
    table = nnx.tabulate(small(name), images, console_kwargs={"width": 200})
    assert "stages/1/blocks/0" in table
    assert "Dcls2d" in table


@pytest.mark.parametrize("name", ONE)
def test_heads(name, images, tmp_path):
    model = random_model(lambda: small(name))
    headless, other = (random_model(partial(small, name, num_classes=n)) for n in (0, 7))
    seen = features(model, images)
    expected = pooled(model, seen)
    save_weights(model, tmp_path / "weights")
    for source in (tmp_path / "weights", state_dict(model)):
        np.testing.assert_allclose(forward(load_weights(headless, source, new_head=True), images), expected, 1e-4, 1e-4)
        with pytest.raises(CheckpointError, match=r"misshapen: .*fc\."):
            load_weights(other, source)
        loaded = load_weights(other, source, new_head=True)
        assert forward(loaded, images).shape == (2, 7)
        np.testing.assert_allclose(features(loaded, images), seen, 1e-4, 1e-4)
    built = small(name, num_classes=0, weights=tmp_path / "weights")
    np.testing.assert_allclose(forward(built, images), expected, 1e-4, 1e-4)
    built = small(name, num_classes=7, weights=tmp_path / "weights", new_head=True)
    assert forward(built, images).shape == (2, 7)


def test_other_channels(name):
    model = random_model(lambda: small(name, in_channels=5))
    assert jax.eval_shape(forward, model, normal(1, 32, 32, 5)).shape == (1, 4)


@pytest.mark.parametrize("name", ONE)
def test_weights_go_where_the_models_own_are(name):
    mesh = jax.make_mesh((8,), ("a",))
    model = jax.device_put(small(name), NamedSharding(mesh, P()))
    loaded = load_weights(model, state_dict(random_model(lambda: small(name))))
    assert {leaf.sharding for leaf in jax.tree.leaves(nnx.state(loaded))} == {NamedSharding(mesh, P())}


@pytest.mark.slow
def test_copies_own_their_arrays(images):
    model = small("fastvit_sa24", drop_path_rate=0.5)
    copies = [freeze(model), reparameterise(model), load_weights(model, state_dict(model))]
    expected = [forward(copy, images) for copy in copies]
    _, state = nnx.split(model)
    jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)(state)
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    for copy, before in zip(copies, expected, strict=True):
        np.testing.assert_array_equal(forward(copy, images), before)


def test_no_layer_scale_is_the_originals():
    model = random_model(lambda: small("convnext_tiny", layer_scale_init_value=0))
    names = state_dict(model)
    assert not any(name.endswith("gamma") for name in names)
    x = normal(1, 8, 8, 8)
    block = model.stages[0].blocks[0]
    assert np.abs(block(x, model.stages[0].positions) - x).max() > 0.1
    load_weights(model, names)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model of each name, and its checkpoint."""

    @cache
    def of(name):
        model, folder = random_model(lambda: small(name, dcls=True)), tmp_path_factory.mktemp(name) / "published"
        save_weights(model, folder)
        return model, folder

    return of


@pytest.mark.parametrize("channels", [1, slow(4), 7])
@pytest.mark.parametrize("name", ONE)
def test_published_weights_see_other_channels_as_timms_do(name, channels, published, monkeypatch):
    model, folder = published(name)
    monkeypatch.setattr(create, "fetch", lambda _: folder)
    other = small(name, dcls=True, weights="published", in_channels=channels)
    grey = normal(2, 32, 32, 1)
    # equal channels, of which each counts as much as one of three
    if channels == 1:
        expected = forward(model, jnp.tile(grey, (1, 1, 1, 3)))
        np.testing.assert_allclose(forward(other, grey), expected, rtol=1e-4, atol=1e-4)
    else:
        assert jax.eval_shape(forward, other, jnp.tile(grey, (1, 1, 1, channels))).shape == (2, 4)
    kernels = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    changed = [path for path, leaf in nnx.to_flat_state(nnx.state(other, nnx.Param)) if leaf.shape != kernels[path]]
    assert changed
    assert all(path[0] == "stem" and path[-1] == "kernel" for path in changed)
    for path in changed:
        old, new = (dict(nnx.to_flat_state(nnx.state(m)))[path].get_value() for m in (model, other))
        expected = old.sum(-2, keepdims=True) if channels == 1 else old[..., np.arange(channels) % 3, :] * 3 / channels
        np.testing.assert_allclose(new, expected, rtol=1e-6)
    assert other.config.in_channels == channels


@pytest.mark.parametrize("layer", [Dcls1d, Dcls2d])
def test_a_single_layer_is_loaded_and_saved_as_the_package_has_it(layer):
    saved = layer(4, 6, 3, dilated_kernel_size=5, version="gauss", groups=2, rngs=nnx.Rngs(0))
    arrays = state_dict(saved)
    assert {name: array.shape for name, array in arrays.items()} == {
        "weight": (6, 2, 3),
        "bias": (6,),
        "P": (layer.dims, 6, 2, 3),
        "SIG": (layer.dims, 6, 2, 3),
    }
    loaded = load_weights(layer(4, 6, 3, dilated_kernel_size=5, version="gauss", groups=2, rngs=nnx.Rngs(1)), arrays)
    np.testing.assert_array_equal(loaded.construct(), saved.construct())

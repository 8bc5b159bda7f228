"""The one entrance: layers, augmentation, chunks, targets and options; what is refused and what is warned of."""

import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dcls_jax.cam import (
    DeadMapWarning,
    combine_layers,
    dead_maps,
    explain,
    grad_cam,
    normalise,
    postprocess,
    resize,
)
from dcls_jax.cam.targets import Region
from dcls_jax.models import create_model, preprocess
from tests.conftest import initialiser, normal, random_model


class Small(nnx.Module):
    """Two convolutions and a linear head; classes 3 and 4 look at nothing, or at the bias alone."""

    def __init__(self):
        options = {"kernel_init": initialiser(2), "rngs": nnx.Rngs(0)}
        self.first = nnx.Conv(3, 4, (3, 3), **options)
        self.second = nnx.Conv(4, 6, (3, 3), strides=2, **options)
        self.fc = nnx.Linear(6, 5, **options)
        self.fc.kernel[...] = self.fc.kernel[...].at[:, 3:].set(0)

    def features(self, images, upto="second"):
        if upto not in ("first", "second"):
            raise ValueError(f"no layer {upto!r}; the nearest are first, second")
        x = nnx.relu(self.first(images))
        return x if upto == "first" else nnx.relu(self.second(x))

    def head(self, activations, start="second"):
        x = activations if start == "second" else nnx.relu(self.second(activations))
        return self.fc(x.mean((1, 2)))


class Uncut(nnx.Module):
    """Features and head without names for other cuts."""

    def features(self, images):
        return images

    def head(self, activations):
        return activations.mean((1, 2))


LABELS = np.array([0, 2, 1, 2])
compiled = jax.jit(grad_cam, static_argnames="layer")
combined = jax.jit(combine_layers, static_argnames=("combine", "size"))


@pytest.fixture
def images():
    return normal(4, 8, 10, 3)


@pytest.fixture(scope="module")
def model():
    return Small()


def test_raw_maps_of_one_layer_are_the_methods_own(model, images, assert_close):
    assert_close(explain(model, images, LABELS), compiled(model, images, LABELS), 1e-6)
    for layer, shape in (("first", (8, 10)), ("second", (4, 5))):
        expected = compiled(model, images, LABELS, layer=layer)
        maps = explain(model, images, LABELS, layer=layer)
        assert maps.shape == (4, *shape)
        assert_close(maps, expected, 1e-6)
        assert_close(explain(model, images, LABELS, layer=[layer]), expected, 1e-6)
    assert_close(explain(model, images, LABELS, size=(6, 7)), resize(compiled(model, images, LABELS), (6, 7)), 1e-6)


def test_product_of_layers_by_the_fixture_of_torch_cam():
    maps = jnp.array([[[[0.0, 1.0], [2.0, 3.0]]], [[[3.0, 2.0], [1.0, 0.0]]]])
    np.testing.assert_allclose(normalise(maps[0]) * normalise(maps[1]), [[[0, 2 / 9], [2 / 9, 0]]], atol=1e-6)
    np.testing.assert_allclose(combined(maps, "product"), [[[0, 1], [1, 0]]], atol=1e-6)


@pytest.mark.slow
def test_layers_meet_without_their_scales():
    small = jnp.array([[[-5.0, 0.0], [1.0, 2.0]]])
    large = jnp.zeros((1, 4, 4)).at[0, 0, 0].set(1e-9)
    for combine, reduce in (("mean", np.mean), ("max", np.max)):
        parts = np.stack([normalise(resize(jax.nn.relu(small), 4)), large * 1e9])
        np.testing.assert_allclose(combined([small, large], combine), normalise(reduce(parts, 0)), atol=1e-6)
    assert jax.eval_shape(lambda *maps: combine_layers(maps, size=(3, 5)), small, large).shape == (1, 3, 5)
    assert not combined([-large, -(small**2)], "mean").any()


@pytest.mark.slow
def test_several_layers_at_once(model, images, assert_close):
    raw = [compiled(model, images, LABELS, layer=layer) for layer in ("first", "second")]
    for combine in ("mean", "max", "product"):
        maps = explain(model, images, LABELS, layer=("first", "second"), combine=combine, chunk=3)
        assert maps.shape == (4, 8, 10)
        assert_close(maps, combined(raw, combine), 1e-5)


@pytest.mark.slow
def test_augmentation_is_the_mean_over_six_views(model, images, assert_close):
    views = [(scale, flip) for flip in (1, -1) for scale in (0.9, 1, 1.1)]
    expected = sum(compiled(model, scale * images[:, :, ::flip], LABELS)[..., ::flip] for scale, flip in views) / 6
    assert_close(explain(model, images, LABELS, augment=True), expected, 1e-5)
    assert_close(explain(model, images, LABELS, augment=True, chunk=3), expected, 1e-5)
    mirrored = explain(model, images[:, :, ::-1], LABELS, augment=True)
    assert_close(mirrored[..., ::-1], expected, 1e-5)


def test_without_targets_the_predicted_class_is_explained(model, images, assert_close):
    predicted = model.head(model.features(images)).argmax(-1)
    assert_close(explain(model, images), explain(model, images, predicted), 1e-6)


def test_targets_are_cut_with_the_images(images, assert_close):
    class Dense(Uncut):
        def head(self, activations):
            return activations**2

    masks = jnp.arange(4 * 8 * 10).reshape(4, 8, 10) % 7 > 3
    targets = Region(jnp.array([0, 2, 1, 2]), masks)
    together = explain(Dense(), images, targets)
    assert_close(together, compiled(Dense(), images, targets), 1e-6)
    assert_close(explain(Dense(), images, targets, chunk=3), together, 1e-6)
    assert_close(explain(Dense(), images, lambda logits: logits[3, 4].sum(), chunk=3)[:, 0, 0].shape, (4,))


def drawn(model, images, targets=None, *, key, layer=None, offset=0.0):
    """A method with options: noise of one key, or of one per image, and an array to add."""
    keys = jnp.broadcast_to(key, (len(images),))
    noise = jax.vmap(jax.random.uniform)(keys)[:, None, None]
    return noise * (images + offset).sum(-1)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.split(jax.random.key(3), 4)], ids=["one", "each"])
@pytest.mark.parametrize("offset", ["image", "batch"])
def test_options_with_an_entry_per_image_are_cut_and_others_are_not(model, images, key, offset, assert_close):
    options = {"key": key, "offset": images[0] if offset == "image" else images}
    together = explain(model, images, LABELS, method=drawn, **options)
    assert_close(together, drawn(model, images, **options), 1e-5)
    assert_close(explain(model, images, LABELS, method=drawn, chunk=3, **options), together, 1e-5)


def test_arrays_among_options_do_not_compile_anew(model, images):
    traces = []

    def counted(model, images, targets, *, layer=None, key):
        traces.append(key)
        return images[..., 0] + jax.random.normal(key)

    maps = [explain(model, images, LABELS, method=counted, key=jax.random.key(i)) for i in range(3)]
    assert len(traces) == 1
    assert not np.array_equal(maps[0], maps[1])


def test_inside_jit_vmap_and_grad(model, images, assert_close):
    expected = explain(model, images, LABELS)
    assert_close(jax.jit(explain)(model, images, LABELS), expected, 1e-6)
    assert_close(jax.vmap(lambda x, y: explain(model, x[None], y[None])[0])(images, jnp.array(LABELS)), expected, 1e-5)
    assert jnp.isfinite(jax.grad(lambda x: explain(model, x, LABELS).sum())(images)).all()
    # what cannot be seen there is not checked
    assert jnp.isnan(jax.jit(explain)(model, images * jnp.nan, LABELS)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradcam"}, "method .*one of .*grad_cam, "),
        ({"targets": [0, 1, 2, 5]}, "label 5, but the model has classes 0 to 4"),
        ({"targets": [0, 1]}, r"targets have shape \(2,\)"),
        ({"targets": lambda logits: logits}, "shape"),
        ({"images": jnp.zeros((8, 10, 3))}, "images have shape"),
        ({"layer": "third"}, "no layer 'third'.*first, second"),
        ({"layer": ("first", "third")}, "no layer 'third'"),
        ({"layer": ()}, r"layer \(=\(\)\) must be the name of a layer"),
        ({"layer": -1}, r"layer \(=-1\) must be the name of a layer"),
        ({"size": 0}, r"size \(=0\) must be a positive whole number"),
        ({"size": (3, 4, 5)}, r"size .* must be a positive whole number, or 2 of them"),
        ({"targets": [np.sum] * 4}, "targets are a list of functions"),
        ({"layer": ("first", "second"), "combine": "sum"}, "combine .*mean, max, product"),
        ({"chunk": 0}, "chunk"),
        ({"steps": 3}, "grad_cam has no option 'steps'; its options are: "),
        ({"method": "fem", "kk": 3}, "fem has no option 'kk'; its options are: k, form, reduce"),
        ({"method": "fem", "k": [3]}, "option k .* must be an array or hashable"),
        ({"method": drawn}, "drawn needs the option 'key'"),
        ({"model": Uncut(), "layer": "first"}, "features` takes no `upto`"),
        ({"model": lambda images: images}, "model .a function. has no `features`.*from_functions"),
        ({"images": jnp.zeros((4, 8, 10, 3)).at[2, 0, 0].set(jnp.nan)}, "image 2 .* the images themselves are not"),
        ({"images": jnp.full((4, 8, 10, 3), 3e38)}, "images 0, 1, 2, 3 .* the activations there are not"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(model, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(**({"model": model, "images": images, "targets": LABELS} | arguments))


def test_our_models_name_the_nearest_layers(images):
    tiny = random_model(lambda: create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4), num_classes=5))
    with pytest.raises(ValueError, match=r"no layer 'stage\.2' in ConvNeXt; the nearest are stages\.2"):
        explain(tiny, jnp.zeros((1, 32, 32, 3)), [0], layer="stage.2")


def test_a_prediction_is_explained_of_logits_only(images):
    class Regression(Uncut):
        def head(self, activations):
            return activations.mean((1, 2, 3))

    with pytest.raises(ValueError, match="targets are needed"):
        explain(Regression(), images)
    assert explain(Regression(), images, lambda output: output).shape == (4, 8, 10)
    assert explain(Regression(), images, method="eigen_cam").shape == (4, 8, 10)


def test_dead_maps_are_zero_and_warned_of(model, images):
    with pytest.warns(DeadMapWarning, match="images 1, 3 by grad_cam at the features are constant.*class token"):
        maps = explain(model, images, [0, 3, 1, 4], chunk=3)
    np.testing.assert_array_equal(dead_maps(maps), [False, True, False, True])
    assert not maps[1].any()
    with pytest.warns(DeadMapWarning) as warned:
        combined = explain(model, images, [3, 0, 1, 2], layer=("first", "second"))
    assert ["image 0 by grad_cam at layer 'first'" in str(w.message) for w in warned] == [True, False]
    assert not combined[0].any()


def test_dead_maps_are_constant_or_not_finite():
    maps = jnp.zeros((4, 2, 3)).at[1].set(-7).at[2, 0, 0].set(jnp.nan).at[3, 1, 1].set(1e-30)
    np.testing.assert_array_equal(dead_maps(maps), [True, True, True, False])
    np.testing.assert_array_equal(normalise(maps)[:3], 0)


@pytest.mark.slow
def test_the_docstrings_example_runs():
    lines = [line for line in inspect.getsource(explain).splitlines() if line.startswith(" " * 8) and " = " in line]
    code = textwrap.dedent("\n".join(lines[:3])).replace('("convnext_tiny")', '("convnext_tiny", dims=(8, 8, 8, 8))')
    names = {"create_model": create_model, "preprocess": preprocess, "Image": Image, "explain": explain}
    exec(code, names)  # the docstring's own
    assert names["maps"].shape == (1, 14, 14)


@pytest.mark.slow
def test_a_single_map_is_presented_too():
    ramp = np.arange(12.0).reshape(3, 4) - 2
    np.testing.assert_allclose(postprocess(ramp), np.clip(ramp, 0, None) / 9, atol=1e-6)
    assert postprocess(ramp, size=6).shape == (6, 6)
    assert postprocess(np.arange(5.0), space=1, size=10).shape == (10,)
    assert postprocess(np.zeros((2, 3, 4, 5)), space=3, size=(6, 4, 10)).shape == (2, 6, 4, 10)
    for size in (0, -1, 2.5, (3,), (3, 0)):
        with pytest.raises(ValueError, match="must be a positive whole number"):
            postprocess(ramp, size=size)
    with pytest.raises(ValueError, match=r"maps have shape \(5,\), expected \(\.\.\., \*space\) with 2 axes"):
        normalise(np.arange(5.0))


def test_layers_meet_as_in_pytorch_grad_cam(assert_close):
    """ReLU, min-max, resize, mean, min-max (aggregate_multi_layers); a resize before min-max would give others."""
    layers = [normal(2, 3, 4), normal(2, 5, 6, seed=1)]
    shown = []
    for maps in layers:
        positive = np.maximum(np.asarray(maps), 0)
        low, high = positive.min((1, 2), keepdims=True), positive.max((1, 2), keepdims=True)
        scaled = jnp.asarray((positive - low) / (high - low))
        shown.append(jax.image.resize(scaled, (2, 5, 6), "bilinear"))
    assert_close(combined(layers), normalise(np.mean(shown, 0)), 1e-6)

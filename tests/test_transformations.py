"""What JAX does to functions, done to depthwise convolution, kernels and models, on eight devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dcls_jax import construct_kernel, depthwise_conv
from dcls_jax.methods import LOWERINGS
from tests.conftest import normal, random_model, slow
from tests.models.small import MODELS, small

pytestmark = pytest.mark.usefixtures("strict")

MESHES = [AxisType.Auto, AxisType.Explicit]
ALONG = ["batch", slow("channels"), "both"]  # "both" divides what each of the others does
SPREADS = {  # of image and kernel
    "batch": (P("a"), P()),
    "channels": (P(None, None, None, "a"), P(None, None, "a")),
    "channels of the image": (P(None, None, None, "a"), P()),
    "channels of the kernel": (P(), P(None, None, "a")),
    "batch, channels of the kernel": (P("a"), P(None, None, "b")),
    "both": (P("a", None, None, "b"), P(None, None, "b")),
}
X, K = normal(8, 7, 9, 16), normal(3, 5, 16, seed=1)


def supported(method):
    if not LOWERINGS[method].supports("cpu", X, (1, 1)):
        pytest.skip(f"{method} is not for CPUs, or was not built at install")
    return method


def step(x, kernel, method):
    """A loss of the convolution and both its gradients."""

    def loss(x, kernel):
        return jnp.sin(depthwise_conv(x, kernel, padding=2, method=method)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)


@pytest.fixture(scope="module")
def expected():
    return jax.jit(step, static_argnums=2)(X, K, "direct")


# "auto" takes local ones alone.
@pytest.fixture(params=[name if lowering.local else slow(name) for name, lowering in LOWERINGS.items()])
def method(request):
    return supported(request.param)


@pytest.fixture
def assert_equal(assert_close):
    def check(actual, expected, relative=1e-5):
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert_close(a, b, relative)

    return check


def two_axes(kind):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))


def put(mesh, *pairs):
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in pairs]


@pytest.mark.parametrize(
    "spread",
    [*ALONG, "channels of the kernel", slow("channels of the image"), slow("batch, channels of the kernel")],
)
@pytest.mark.parametrize("kind", MESHES)
def test_each_device_convolves_its_own_images_and_channels(method, kind, spread, expected, assert_equal):
    mesh = two_axes(kind)
    x, kernel = put(mesh, *zip((X, K), SPREADS[spread], strict=True))
    compiled = jax.jit(step, static_argnums=2).lower(x, kernel, method).compile()
    results = compiled(x, kernel)
    assert_equal(results, expected)
    assert results[1][0].sharding.is_equivalent_to(x.sharding, 4) or kind is AxisType.Auto
    assert results[1][1].sharding.is_equivalent_to(kernel.sharding, 3) or kind is AxisType.Auto
    program = compiled.as_text()
    if method == "native":  # how much of image, its gradient and the kernel's a device computes
        batch, channels = (
            X.shape[axis] // divisor for axis, divisor in ((0, _parts(spread)[0]), (3, _parts(spread)[1]))
        )
        local = re.findall(r"= f32\[([\d,]+)\]\S* custom-call\(.*dcls_depthwise", program)
        assert set(local) == {f"{batch},{size},{channels}" for size in ("9,9", "7,9", "3,5")}
    if kind is AxisType.Auto and not (
        LOWERINGS[method].divided_by_xla and "channels" in spread
    ):  # explicit axes may ask for the gradient on all devices
        assert "all-gather" not in program


def _parts(spread):
    """Into how many parts a spread divides the batch and the channels."""
    (batch, *_, of_image), (*_, of_kernel) = (
        (*spec, *(None,) * 4)[:n] for spec, n in zip(SPREADS[spread], (4, 3), strict=True)
    )
    devices = {None: 1, "a": 4, "b": 2}
    return devices[batch], devices[of_image or of_kernel]


@pytest.mark.parametrize("kind", MESHES)
def test_under_a_mesh_jitted_and_not(method, kind, expected, assert_equal):
    mesh = two_axes(kind)
    with jax.set_mesh(mesh):
        x, kernel = put(mesh, (X, P("a")), (K, P()))
        assert_equal(step(x, kernel, method), expected)
        assert_equal(jax.jit(step, static_argnums=2)(x, kernel, method), expected)


@pytest.mark.parametrize("kind", MESHES)
def test_pixels_and_cells_stay_together(kind):
    mesh = jax.make_mesh((3,), ("a",), axis_types=(kind,), devices=jax.devices()[:3])
    x, kernel = put(mesh, (X, P(None, None, "a")), (K, P()))
    if kind is AxisType.Explicit:
        with pytest.raises(ValueError, match="may be sharded by batch and channels alone"):
            depthwise_conv(x, kernel, padding=2)
    else:
        np.testing.assert_allclose(depthwise_conv(x, kernel, padding=2), depthwise_conv(X, K, padding=2), 1e-5, 1e-5)


@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("spread", ALONG)
def test_shard_map_knows_what_varies(method, kind, spread, expected, assert_equal):
    mesh, specs = two_axes(kind), SPREADS[spread]
    summed = tuple(name for name in ("a", "b") if any(name in spec for spec in specs))

    def local(x, kernel):
        loss, gradients = step(x, kernel, method)
        return jax.lax.psum(loss, summed), gradients

    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(), specs))
    arguments = put(mesh, *zip((X, K), specs, strict=True))
    assert_equal(jax.jit(mapped)(*arguments), expected)


def test_shard_map_over_some_axes(method, expected, assert_equal):
    mesh = two_axes(AxisType.Auto)

    def local(x, kernel):
        loss, gradients = step(x, kernel, method)
        return jax.lax.psum(loss, "a"), gradients

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P("a"), P()), out_specs=(P(), (P("a"), P())), axis_names={"a"})
    arguments = put(mesh, (X, P("a", None, None, "b")), (K, P(None, None, "b")))
    assert_equal(jax.jit(mapped)(*arguments), expected)


SEVERAL = X.reshape(4, 2, 7, 9, 16), jnp.stack([K, -K, 2 * K, K])


@pytest.fixture(scope="module")
def expected_of_several():
    return jax.jit(jax.vmap(partial(step, method="direct")))(*SEVERAL)


@pytest.mark.parametrize("kind", MESHES)
def test_vmap_over_a_sharded_axis(method, kind, expected_of_several, assert_equal):
    mesh = two_axes(kind)
    each = jax.vmap(partial(step, method=method))
    with jax.set_mesh(mesh):
        sharded = put(mesh, *((array, P("a")) for array in SEVERAL))
        assert_equal(jax.jit(each)(*sharded), expected_of_several)


@pytest.mark.parametrize("transform", ["remat", "disable_jit", "export", "x64", "scan"])
def test_other_transformations(method, transform, expected, assert_equal):
    f = partial(step, method=method)
    if transform == "disable_jit":
        with jax.disable_jit():
            assert_equal(f(X, K), expected)
    elif transform == "x64":
        with jax.enable_x64(True):
            assert_equal(jax.jit(f)(X, K), expected)
            if LOWERINGS[method].supports("cpu", np.zeros(0), (1, 1)):
                wide = jax.jit(f)(X.astype(jnp.float64), K.astype(jnp.float64))
                assert wide[1][1].dtype == jnp.float64
                assert_equal(wide, expected)
    elif transform == "scan":
        _, results = jax.jit(lambda: jax.lax.scan(lambda _, x: (None, f(x, K)), None, X[:, None]))()
        assert_equal((results[0].sum(), (results[1][0][:, 0], results[1][1].sum(0))), expected)
    elif transform == "export":
        if not LOWERINGS[method].portable:
            pytest.skip(f"{method} is this machine's own")
        assert_equal(jax.export.export(jax.jit(f))(X, K).call(X, K), expected)
    else:
        loss = jax.checkpoint(lambda x, k: jnp.sin(depthwise_conv(x, k, padding=2, method=method)).sum())
        assert_equal(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(X, K), expected)


def test_programs_that_differ_in_their_padding_alone_are_told_apart():
    """Between hosts JAX's cache of programs does not look at what `custom_partitioning` divides: it is Python's."""
    (x,) = put(two_axes(AxisType.Auto), (X, P("a")))
    programs = [
        jax.jit(partial(depthwise_conv, padding=padding)).lower(x, K).as_text()
        for padding in (((2, 0), (0, 0)), ((0, 2), (0, 0)))
    ]
    first, second = (re.sub(r'backend_config = "\d+"', "", program) for program in programs)
    assert first != second


@pytest.mark.parametrize("version", [slow("v0"), "v1", slow("max"), "gauss"])
@pytest.mark.parametrize("dims", [slow(1), 2, slow(3)])
def test_kernels_sharded_over_their_outputs(version, dims, assert_equal):
    weight, positions = normal(8, 2, 3), normal(dims, 8, 2, 3, seed=1)
    sigma = (jnp.abs(positions),) if version in ("max", "gauss") else ()

    def loss(weight, positions, *sigma):
        kernel = construct_kernel(weight, positions, *sigma, dilated_kernel_size=(5,) * dims, version=version)
        return (kernel**2).sum()

    run = jax.value_and_grad(loss, argnums=(0, 1))
    expected = jax.jit(run)(weight, positions, *sigma)
    specs = (P("a"), P(None, "a"), *[P(None, "a") for _ in sigma])
    for kind in MESHES:
        mesh = two_axes(kind)
        with jax.set_mesh(mesh):
            arguments = put(mesh, *zip((weight, positions, *sigma), specs, strict=True))
            assert_equal(jax.jit(run)(*arguments), expected)

    def local(*arguments):
        loss, gradients = run(*arguments)
        return jax.lax.psum(loss, "a"), gradients

    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(), specs[:2]))
    assert_equal(jax.jit(mapped)(*arguments), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_train_on_every_mesh(name, assert_equal):
    model = random_model(lambda: small(name))
    images = normal(8, 32, 32, 3)

    def loss(model, images):
        return (model(images) ** 2).sum()

    run = jax.value_and_grad(loss)
    expected = jax.jit(run)(model, images)
    for kind in MESHES:
        mesh = two_axes(kind)
        with jax.set_mesh(mesh):
            everywhere, spread = put(mesh, (model, P()), (images, P("a")))
            compiled = jax.jit(run).lower(everywhere, spread).compile()
            assert "all-gather" not in compiled.as_text()
            assert_equal(compiled(everywhere, spread), expected, 1e-4)

    def local(model, images):
        loss, gradients = run(model, images)
        return jax.lax.psum(loss, "a"), gradients

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("a")), out_specs=P())
    assert_equal(jax.jit(mapped)(everywhere, spread), expected, 1e-4)

"""Training's parts against PyTorch, timm and the formulas of ConvNeXt-dcls."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcls_jax.layers import Positions
from dcls_jax.training import cutmix, ema, mixup, optimiser, recipe, repulsive_loss
from tests.conftest import normal

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def timm():
    timm = pytest.importorskip("tests.torch_models", exc_type=ImportError).timm
    for part in ("optim", "scheduler"):
        importlib.import_module(f"timm.{part}")
    return timm


RATES, DECAY = (1e-2, 2e-2, 5e-3), 0.05
SHAPES = {"kernel": (5, 4), "bias": (4,), "P": (2, 4, 1, 3), "SIG": (2, 4, 1, 3)}


def parameters() -> dict[str, np.ndarray]:
    return {name: np.asarray(normal(*shape, seed=i)) for i, (name, shape) in enumerate(SHAPES.items())}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Small in the last step, so that LAMB clips the first two only; those of the bias so small that epsilon counts."""
    scale = (3.0, 0.5, 0.01)[step]
    found = {name: scale * np.asarray(normal(*shape, seed=step + 9)) for name, shape in SHAPES.items()}
    return found | {"bias": 1e-5 * found["bias"]}


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_three_steps_in_groups(rule, torch, timm, assert_close):
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in parameters().items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": DECAY, "factor": 1},
        {"params": [tensors["bias"]], "weight_decay": 0.0, "factor": 1},
        {"params": [tensors["P"], tensors["SIG"]], "weight_decay": 0.0, "factor": 5},
    ]
    original = torch.optim.AdamW(groups, lr=1.0) if rule == "adamw" else timm.optim.Lamb(groups, lr=1.0)

    params = {name: jnp.asarray(value) for name, value in parameters().items()}
    optimise = optimiser(lambda step: jnp.asarray(RATES)[step], DECAY, rule=rule)
    state = optimise.init(params)
    for step, rate in enumerate(RATES):
        for name, gradient in gradients(step).items():
            tensors[name].grad = torch.tensor(gradient)
        for group in original.param_groups:
            group["lr"] = rate * group["factor"]
        original.step()
        updates, state = optimise.update(jax.tree.map(jnp.asarray, gradients(step)), state, params)
        params = optax.apply_updates(params, updates)
        for name, tensor in tensors.items():
            # How far they moved, of which parameters about 1 that moved by 0.01 have lost two digits.
            assert_close(params[name] - parameters()[name], tensor.detach().numpy() - parameters()[name], 5e-5)


def test_layer_decay_is_torchs_group_rates(torch, assert_close):
    tensors = [torch.nn.Parameter(torch.full((3, 3), 2.0)) for _ in range(3)]
    groups = [{"params": [tensor], "lr": 0.01 * 0.7 ** (2 - i)} for i, tensor in enumerate(tensors)]
    original = torch.optim.AdamW(groups, weight_decay=DECAY)
    params = [jnp.full((3, 3), 2.0)] * 3
    optimise = optimiser(0.01, DECAY, layer_decay=0.7, layer_of=lambda path: path[0])
    for tensor in tensors:
        tensor.grad = torch.ones(3, 3)
    original.step()
    updates, _ = optimise.update([jnp.ones((3, 3))] * 3, optimise.init(params), params)
    for found, tensor in zip(optax.apply_updates(params, updates), tensors, strict=True):
        assert_close(found, tensor.detach().numpy(), 1e-6)


@pytest.mark.parametrize("name", ["caformer_s18_dcls", "fastvit_sa24_dcls"])
def test_the_rate_of_each_epoch_is_timms(name, torch, timm):
    ours = recipe(name)
    weight = torch.nn.Parameter(torch.zeros(1))
    scheduler = timm.scheduler.CosineLRScheduler(
        torch.optim.SGD([weight], ours.learning_rate),
        t_initial=ours.epochs,
        lr_min=ours.minimum,
        warmup_t=ours.warmup_epochs,
        warmup_lr_init=ours.warmup_start,
    )
    rate = jax.jit(ours.schedule(steps_per_epoch=7))
    for epoch in range(ours.total_epochs):
        scheduler.step(epoch)
        (expected,) = {group["lr"] for group in scheduler.optimizer.param_groups}
        for step in (7 * epoch, 7 * epoch + 6):
            np.testing.assert_allclose(rate(step), expected, rtol=1e-6)


def test_the_rate_of_each_step_is_convnexts():
    """After the warm-up; in it ConvNeXt's reaches the peak one step earlier, by numpy's linspace."""
    ours, steps, warmup = recipe("convnext_dcls_tiny"), 300 * 5, 20 * 5
    left = np.arange(steps - warmup)
    expected = ours.minimum + 0.5 * (ours.learning_rate - ours.minimum) * (1 + np.cos(np.pi * left / len(left)))
    rate = jax.vmap(ours.schedule(5))
    np.testing.assert_allclose(rate(jnp.arange(warmup, steps)), expected, rtol=2e-6)
    linspace = np.linspace(0, ours.learning_rate, warmup)
    np.testing.assert_allclose(rate(jnp.arange(1, warmup)), linspace[1:] * (warmup - 1) / warmup, rtol=1e-6)


def test_averages_are_timms_but_for_aliases(torch, timm, assert_close):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(3))
            for layer in self.layers:
                layer.P = torch.nn.Parameter(torch.zeros(2)) if layer is self.layers[0] else self.layers[0].P

    original, average = Net(), {"weight": jnp.zeros((2, 2)), "P": jnp.zeros(2)}
    for parameter in original.parameters():
        parameter.data.zero_()
    averaged = timm.utils.ModelEma(original, decay=0.9)
    for parameter in original.parameters():
        parameter.data.fill_(1)
    averaged.update(original)
    average = ema(average, jax.tree.map(jnp.ones_like, average), 0.9)
    assert_close(average["weight"], averaged.ema.layers[1].weight.detach().numpy(), 1e-6)
    np.testing.assert_allclose(average["P"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(averaged.ema.layers[0].P.detach().numpy(), 1 - 0.9**3, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.3, 0.8])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_batches_are_timms(kind, ratio, torch, timm, monkeypatch, assert_close):
    timms = timm.data.mixup
    images, labels = normal(4, 9, 12, 3), np.array([0, 3, 1, 1])
    original = timms.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
    boxes = []
    found_box = timms.cutmix_bbox_and_lam

    def remembered(*arguments, **options):
        boxes.append(found_box(*arguments, **options))
        return boxes[-1]

    monkeypatch.setattr(timms, "cutmix_bbox_and_lam", remembered)
    monkeypatch.setattr(original, "_params_per_batch", lambda: (ratio, kind == "cutmix"))
    x = torch.tensor(np.moveaxis(np.asarray(images), -1, 1).copy())
    expected_images, expected_labels = original(x, torch.tensor(labels))
    options = {"num_classes": 5, "smoothing": 0.1}
    if kind == "mixup":
        found = mixup(images, jnp.asarray(labels), ratio=ratio, **options)
    else:
        found = cutmix(images, jnp.asarray(labels), box=tuple(int(side) for side in boxes[0][0]), **options)
    assert_close(found[0], np.moveaxis(expected_images.numpy(), 1, -1), 1e-6)
    assert_close(found[1], expected_labels.numpy(), 1e-6)


@pytest.mark.parametrize("count", [5, 34])
def test_repulsion_and_its_gradient_are_the_originals(count, torch, assert_close):
    values = [np.array(normal(2, 6, 1, count, seed=1)), np.array(normal(2, 3, 4, count, seed=2))]
    values[0][:, 0, 0, 1] = values[0][:, 0, 0, 0]  # two elements at one place
    tensors = [torch.tensor(value, requires_grad=True) for value in values]
    expected = 0
    for tensor in tensors:
        p = tensor.reshape(2, -1, count).permute(1, 2, 0)
        distances = torch.cdist(p, p, compute_mode="donot_use_mm_for_euclid_dist")
        near = (1 - distances).triu(diagonal=1).clamp_min(0)
        expected = expected + 2 * near.sum() / (count * (count - 1) * len(p)) / len(tensors)
    expected.backward()

    model = nnx.Dict(
        {str(i): Positions(value.shape[1:], (17, 17), "v1", rngs=nnx.Rngs(0)) for i, value in enumerate(values)}
    )
    for i, value in enumerate(values):
        model[str(i)].P[...] = jnp.asarray(value)
    found, slopes = nnx.value_and_grad(repulsive_loss)(model)
    assert_close(found, expected.detach().numpy(), 1e-5)
    for i, tensor in enumerate(tensors):
        assert_close(slopes[str(i)].P[...], tensor.grad.numpy(), 1e-5)

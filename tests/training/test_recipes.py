import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcls_jax.models.create import MODELS
from dcls_jax.training import RECIPES, Recipe, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_each_is_of_the_published_model(name):
    found = RECIPES[name]
    assert found.dcls == MODELS[found.model][1].dcls
    assert name.replace("_dcls", "") == found.model
    assert set(found.unpublished) <= set(Recipe.__dataclass_fields__)


def test_what_is_known_of_convnext():
    tiny, small = recipe("convnext_dcls_tiny"), recipe("convnext_dcls_small")
    assert (tiny.epochs, tiny.batch_size, tiny.learning_rate, tiny.minimum) == (300, 4096, 4e-3, 1e-6)
    assert (tiny.rule, tiny.per, tiny.weight_decay, tiny.ema, tiny.drop_path_rate) == (
        "adamw",
        "step",
        0.05,
        0.9999,
        0.1,
    )
    assert tiny.unpublished == {}
    assert small.unpublished == {"drop_path_rate": "ConvNeXt's own, without DCLS"}


def test_what_is_not_known_says_whose_it_is():
    resnet = recipe("resnet50_dcls")
    assert (resnet.epochs, resnet.rule, resnet.loss) == (600, "lamb", "binary")
    for name in ("epochs", "rule", "loss", "learning_rate", "rand_augment", "weight_decay"):
        assert "a1_in1k" in resnet.unpublished[name]
    for name in ("caformer_s18_dcls", "fastvit_sa36_dcls"):
        assert recipe(name).unpublished["position_factor"] == "ConvNeXt-dcls"


def test_schedules_by_step_and_by_epoch():
    by_step = recipe("convnext_dcls_tiny").schedule(steps_per_epoch=10)
    assert float(by_step(0)) == 0
    assert float(by_step(200)) == pytest.approx(4e-3)
    assert float(by_step(205)) < 4e-3
    assert float(by_step(3000)) == pytest.approx(1e-6)
    by_epoch = recipe("fastvit_sa24_dcls").schedule(steps_per_epoch=10)
    assert float(by_epoch(0)) == float(by_epoch(9)) == pytest.approx(1e-6)
    assert float(by_epoch(3000)) == pytest.approx(1e-5)
    assert recipe("fastvit_sa24_dcls").total_epochs == 310


def test_the_optimiser_follows_the_schedule():
    params = {"P": jnp.zeros(2), "weight": jnp.zeros((2, 2))}
    short = recipe("convnext_dcls_tiny", epochs=4, warmup_epochs=2)
    optimise = short.optimiser(steps_per_epoch=1)
    state = optimise.init(params)
    for step in range(4):
        updates, state = optimise.update(jax.tree.map(jnp.ones_like, params), state, params)
        rate = float(short.schedule(1)(step))
        np.testing.assert_allclose(updates["weight"], -rate, rtol=1e-4)
        np.testing.assert_allclose(updates["P"], -5 * rate, rtol=1e-4)
    frozen = short.optimiser(1, frozen=["weight"])
    updates, _ = frozen.update(params, frozen.init(params), params)
    assert isinstance(optimise, optax.GradientTransformation)
    np.testing.assert_array_equal(updates["weight"], 0)


def test_repulsion_begins_with_its_epoch():
    weights = [float(recipe("convnext_dcls_tiny").repulsion(step, 10)) for step in (0, 209, 210, 2999)]
    assert weights == [0, 0, 1, 1]
    assert float(recipe("convnext_dcls_tiny", repulsion_from=None).repulsion(2999, 10)) == 0


def test_losses():
    logits, labels = np.float32([[2.0, -1.0, 0.5]]), np.float32([[0.7, 0.1, 0.2]])
    p = np.exp(logits) / np.exp(logits).sum()
    softmax = recipe("convnext_dcls_tiny").fit(jnp.asarray(logits), jnp.asarray(labels))
    assert float(softmax) == pytest.approx(float(-(labels * np.log(p)).sum()), rel=1e-5)
    s = 1 / (1 + np.exp(-logits))
    binary = -(labels * np.log(s) + (1 - labels) * np.log(1 - s)).mean()
    found = recipe("resnet50_dcls").fit(jnp.asarray(logits), jnp.asarray(labels))
    assert float(found) == pytest.approx(float(binary), rel=1e-5)


def test_other_batches():
    small = recipe("caformer_s18_dcls").for_batches_of(1024)
    assert (small.batch_size, small.learning_rate) == (1024, 2e-3)
    assert small.minimum == pytest.approx(2.5e-6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("convnext", {}, r"recipe \(='convnext'\) must be one of convnext_dcls_tiny, .*, resnet50_dcls"),
        ("convnext_dcls_tiny", {"lr": 1}, r"recipe 'convnext_dcls_tiny' has no field 'lr'; its fields are model, "),
        ("convnext_dcls_tiny", {"epochs": 0}, r"epochs \(=0\) must be a whole number, at least 1"),
        ("convnext_dcls_tiny", {"epochs": 9.5}, r"epochs \(=9.5\) must be a whole number"),
        ("convnext_dcls_tiny", {"epochs": 20}, r"warmup_epochs \(=20\) must be below epochs \(=20\)"),
        ("convnext_dcls_tiny", {"learning_rate": -1}, r"learning_rate \(=-1\) must not be negative"),
        ("convnext_dcls_tiny", {"ema": 1.5}, r"ema \(=1.5\) must lie between 0 and 1"),
        ("convnext_dcls_tiny", {"rule": "sgd"}, r"rule \(='sgd'\) must be one of adamw, lamb"),
        ("convnext_dcls_tiny", {"loss": "hinge"}, r"loss \(='hinge'\) must be one of softmax, binary"),
    ],
)
def test_what_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(name, **changes)

import jax
import numpy as np
import pytest
import train_sample
from flax import nnx
from train_sample import Recipe, spread_positions, train

from dcls_jax.layers import DclsConfig
from dcls_jax.models import create_model

TINY = {"depths": (1,), "dims": (4,), "dcls": DclsConfig(3, 5, "v1")}
RECIPE = Recipe(steps=4, small_steps=3, batch_size=8, learning_rate=1e-2, warmup_steps=1, save_every=2)


class Killed(Exception):
    pass


@pytest.mark.long
def test_a_killed_run_ends_with_the_same_parameters(tmp_path, monkeypatch, capsys):
    whole, history = train("tiny", TINY, RECIPE, tmp_path / "whole")
    assert [entry["step"] for entry in history] == [2, 4]

    batches = train_sample.training_batches

    def dying(*arguments):
        for count, batch in enumerate(batches(*arguments)):
            if count == 3:
                raise Killed
            yield batch

    monkeypatch.setattr(train_sample, "training_batches", dying)
    with pytest.raises(Killed):
        train("tiny", TINY, RECIPE, tmp_path / "killed")
    monkeypatch.setattr(train_sample, "training_batches", batches)
    resumed, resumed_history = train("tiny", TINY, RECIPE, tmp_path / "killed")
    assert "goes on from step 2" in capsys.readouterr().out
    assert [entry["step"] for entry in resumed_history] == [2, 4]
    jax.tree.map(np.testing.assert_array_equal, nnx.state(resumed), nnx.state(whole))


def test_spread_positions_stay_on_the_grid():
    model = create_model("convnext_tiny", num_classes=10, **TINY)
    before = model.stages[0].positions.P[...]
    spread_positions(model, 100.0)
    after = model.stages[0].positions.P[...]
    np.testing.assert_allclose(after, np.clip(100 * before, -2, 2), rtol=1e-6)
    assert np.abs(after).max() == 2


def test_shuffled_labels_stay_with_their_pictures():
    recipe = Recipe(steps=4, small_steps=0, batch_size=6, shuffled=12)
    batches = [(batch.images[0], batch.labels[0]) for batch in train_sample.training_batches(recipe, 0, 4)]
    for (images, labels), (later, same) in ((batches[0], batches[2]), (batches[1], batches[3])):
        np.testing.assert_array_equal(images, later)
        np.testing.assert_array_equal(labels, same)
    labels = np.concatenate([labels for _, labels in batches[:2]])
    assert sorted(labels) == sorted(np.arange(12) % 10)
    assert (labels != np.arange(12) % 10).mean() > 0.5
    np.testing.assert_array_equal(batches[0][0][0], train_sample.draw("train", 0).image[16:-16, 16:-16])

import numpy as np
import pytest

from dcls_jax.training import cosine_schedule, epoch_schedule


def test_cosine_by_step():
    rate = cosine_schedule(4.0, steps=12, warmup_steps=4, minimum=1.0, warmup_start=2.0)
    cosine = [1 + 3 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(9)]
    expected = [2.0, 2.5, 3.0, 3.5, *cosine, 1.0, 1.0]
    np.testing.assert_allclose([rate(step) for step in range(len(expected))], expected, rtol=1e-6)
    assert [cosine_schedule(4.0, steps=2)(step) for step in range(3)] == pytest.approx([4, 2, 0], abs=1e-6)


def test_small_rates_near_the_end_keep_their_digits():
    rate = cosine_schedule(4e-3, steps=100_000, minimum=1e-6)
    for step in (99_000, 99_990, 99_999):
        expected = 1e-6 + (4e-3 - 1e-6) * (1 + np.cos(np.pi * step / 100_000)) / 2
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6)


def test_cosine_by_epoch_begins_with_the_warm_up():
    rate = epoch_schedule(4.0, epochs=6, steps_per_epoch=3, warmup_epochs=2, minimum=1.0, warmup_start=2.0)
    epochs = [2.0, 3.0, *(1 + 3 * (1 + np.cos(np.pi * e / 6)) / 2 for e in range(2, 7)), 1.0]
    np.testing.assert_allclose([rate(step) for step in range(24)], np.repeat(epochs, 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: cosine_schedule(1.0, steps=4, warmup_steps=4), r"warmup_steps \(=4\) must .* below steps \(=4\)"),
        (lambda: cosine_schedule(1.0, steps=4, warmup_steps=-1), r"warmup_steps \(=-1\) must be at least 0"),
        (lambda: epoch_schedule(1.0, epochs=0, steps_per_epoch=1), r"warmup_epochs \(=0\) must .* epochs \(=0\)"),
        (lambda: epoch_schedule(1.0, epochs=1, steps_per_epoch=0), r"steps_per_epoch \(=0\) must be at least 1"),
    ],
)
def test_what_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule()

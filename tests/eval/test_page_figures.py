"""What figures draw, by the numbers that they are handed."""

import re

import numpy as np
import pytest

from dcls_jax.eval.report.comparisons import Bounds
from dcls_jax.eval.report.figures import Axis, axis_of, interval, scale


@pytest.mark.parametrize("ends", [(0, 1), (-0.08, 0.31), (-3e-5, 2e-5), (250, 260), (-1, 1e4)])
def test_ticks_are_round_few_and_inside(ends: tuple[float, float]) -> None:
    ticks = Axis(*ends).ticks
    assert 3 <= len(ticks) <= 9
    assert ends[0] <= ticks[0] <= ticks[-1] <= ends[1]
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-6)
    assert f"{step:.1e}"[0] in "125"


def test_an_axis_holds_its_values_and_bears_a_single_one() -> None:
    axis = axis_of([1, 3, float("nan")])
    assert axis.low < 1
    assert axis.high > 3
    assert axis_of([2, 2]).ticks
    assert axis_of([]).ticks
    assert axis_of([0]).place(0) == 50


def test_an_interval_is_drawn_where_it_is() -> None:
    drawn = interval(Bounds(0.5, 0.25, 1), Axis(-1, 1), 1, 'a "name" <b>')
    places = {name: float(re.search(rf'{name}="([\d.]+)%"', drawn)[1]) for name in ("cx",)}  # type: ignore[index]
    assert places == {"cx": 75}
    assert 'class="bar" x1="62.50%" x2="100.00%"' in drawn
    assert 'class="zero" x1="50.00%"' in drawn
    assert 'class="better"' in drawn
    assert "<b>" not in drawn
    assert 'class="open"' in interval(Bounds(0, -1, 1), Axis(-1, 1), 0, "")


def test_a_scale_has_true_minus_signs_and_no_numbers_at_its_ends() -> None:
    text = str(scale(Axis(-0.2, 0.2)))
    assert re.findall(r">([^<>]+)</text>", text) == ["−0.1", "0", "0.1"]

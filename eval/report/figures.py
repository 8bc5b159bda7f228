"""Figures as inline SVG: numbers in, markup out. Colours, light and dark, are the page's, by the classes named here.

What lies along a row has coordinates in percent, so that it fits any width without scaling text.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from dcls_jax.eval.report.comparisons import Bounds, Comparison
from dcls_jax.eval.report.series import Curve, Scatter, Spread

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 340, 230, 38, 8, 34  # of a figure, and its margins


class Axis(NamedTuple):
    """From low to high, with round ticks."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value is, from 0 to 100."""
        return 100 * (float(value) - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """Four to eight round numbers, one step apart."""
        span = self.high - self.low
        size = 10.0 ** math.floor(math.log10(span / 4))
        step = next(size * times for times in (5, 2, 1) if span / (size * times) >= 3)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def axis_of(values: Sequence[float], *, pad: float = 0.06) -> Axis:
    """One that holds all values that are finite, with some room."""
    finite = [float(value) for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = pad * (high - low) or 0.05 * abs(low) or 0.5
    return Axis(low - room, high + room)


def axis_of_differences(compared: Sequence[Comparison], others: Sequence[Bounds] = ()) -> Axis:
    """One that holds the intervals and zero."""
    intervals = [it.difference for it in compared] + list(others)
    return axis_of([0.0, *(float(bound) for of in intervals for bound in of)])


def scale(axis: Axis) -> Markup:
    """The ticks of an axis with their numbers, to stand below rows."""
    marks = Markup().join(
        Markup(
            '<line class="tick" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="4"/><text x="{0:.2f}%" y="16">{1}</text>'
        ).format(axis.place(tick), number(tick))
        for tick in axis.ticks
        if 4 <= axis.place(tick) <= 96
    )
    return Markup('<svg class="scale" aria-hidden="true">{}</svg>').format(marks)


def interval(of: Bounds, axis: Axis, verdict: int, words: str) -> Markup:
    """A mean with its interval about zero, filled where zero is outside. words: for those who cannot see it."""
    low, middle, high = (axis.place(bound) for bound in (of.low, of.mean, of.high))
    return Markup(
        '<svg class="row" role="img" aria-label="{words}"><title>{words}</title>'
        '<line class="zero" x1="{zero:.2f}%" x2="{zero:.2f}%" y1="0" y2="100%"/>'
        '<g class="{kind}"><line class="bar" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
        '<circle cx="{middle:.2f}%" cy="50%" r="4.5"/></g></svg>'
    ).format(
        words=words,
        zero=axis.place(0),
        kind={1: "better", 0: "open", -1: "worse"}[verdict],
        low=low,
        high=high,
        middle=middle,
    )


def spread(of: Spread, series: int, words: str) -> Markup:
    """A histogram with its quartiles and median."""
    axis = Axis(*of.ends)
    tallest = of.counts.max()
    steps = " ".join(
        f"{100 * bin / len(of.counts):.1f},{20 - 19 * count / tallest:.1f} "
        f"{100 * (bin + 1) / len(of.counts):.1f},{20 - 19 * count / tallest:.1f}"
        for bin, count in enumerate(of.counts.tolist())
    )
    quartiles = [axis.place(of.quantiles[place]) for place in (1, 2, 3)]
    return Markup(
        '<svg class="row tall s{series}" role="img" aria-label="{words}"><title>{words}</title>'
        '<svg viewBox="0 0 100 20" preserveAspectRatio="none" width="100%" height="100%">'
        '<polygon class="area" points="0,20 {steps} 100,20"/></svg>'
        '<line class="bar" x1="{0:.2f}%" x2="{2:.2f}%" y1="86%" y2="86%"/>'
        '<circle cx="{1:.2f}%" cy="86%" r="3.5"/></svg>'
    ).format(*quartiles, series=series, words=words, steps=steps)


def curves(lines: Sequence[Curve], names: Sequence[str], words: str) -> Markup:
    """Lines with bands over the share of pixels."""
    x_axis = Axis(0, max(float(line.x[-1]) for line in lines) or 1)
    bounds = np.concatenate([of for line in lines for of in (line.low, line.high)])
    y_axis = Axis(min(0, float(bounds.min())), max(float(bounds.max()), 1e-9) * 1.04)

    def points(x: np.ndarray, y: np.ndarray) -> str:
        return " ".join(f"{_across(x_axis, a):.1f},{_up(y_axis, b):.1f}" for a, b in zip(x, y, strict=True))

    drawn = Markup().join(
        Markup(
            '<g class="s{0}"><polygon class="band" points="{1} {2}"/><polyline points="{3}"/><title>{4}</title></g>'
        ).format(
            series, points(line.x, line.high), points(line.x[::-1], line.low[::-1]), points(line.x, line.mean), name
        )
        for series, (line, name) in enumerate(zip(lines, names, strict=True))
    )
    shares = "share of pixels" if x_axis.high <= 1 else "step"
    return _figure(words, _frame(x_axis, y_axis, shares, "") + drawn)


def scatter(of: Scatter, names: tuple[str, str], words: str) -> Markup:
    """Points, or cells shaded by how many are in them, and the line on which both are equal."""
    room = 0.03 * (of.ends[1] - of.ends[0])
    axis = Axis(of.ends[0] - room, of.ends[1] + room)
    if of.cells is None:
        marks = Markup().join(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6"><title>record {}</title></circle>').format(
                _across(axis, x), _up(axis, y), record
            )
            for record, x, y in zip(of.records.tolist(), *(points.tolist() for points in of.points), strict=True)
        )
    else:
        marks = _cells(of.cells, axis, of.ends)
    equal = Markup('<line class="zero" x1="{0:.1f}" y1="{2:.1f}" x2="{1:.1f}" y2="{3:.1f}"/>').format(
        *(_across(axis, end) for end in axis), *(_up(axis, end) for end in axis)
    )
    return _figure(words, _frame(axis, axis, *names) + equal + Markup('<g class="dots">{}</g>').format(marks))


def _cells(counts: np.ndarray, axis: Axis, ends: tuple[float, float]) -> Markup:
    edges = np.linspace(*ends, len(counts) + 1)
    x, y = [_across(axis, edge) for edge in edges], [_up(axis, edge) for edge in edges]
    most = counts.max()
    return Markup().join(
        Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"><title>{}</title></rect>'
        ).format(x[i], y[j + 1], x[i + 1] - x[i], y[j] - y[j + 1], math.sqrt(counts[i, j] / most), int(counts[i, j]))
        for i, j in np.argwhere(counts).tolist()
    )


def _figure(words: str, content: Markup) -> Markup:
    return Markup('<svg class="figure" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, words, content
    )


def _frame(x: Axis, y: Axis, across: str, up: str) -> Markup:
    """Axes with ticks and names."""
    down = _HEIGHT - _BOTTOM
    lines = Markup().join(
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="left" x="{3}" y="{4:.1f}">{5}</text>'
        ).format(_LEFT, _WIDTH - 4, _up(y, tick), _LEFT - 5, _up(y, tick) + 3.5, number(tick))
        for tick in y.ticks
    )
    marks = Markup().join(
        Markup('<text x="{:.1f}" y="{}">{}</text>').format(_across(x, tick), down + 13, number(tick))
        for tick in x.ticks
    )
    names = Markup('<text class="name" x="{}" y="{}">{}</text>').format(
        (_LEFT + _WIDTH) / 2, _HEIGHT - 5, escape(across)
    )
    if up:
        names += Markup('<text class="name" transform="translate(9 {}) rotate(-90)">{}</text>').format(
            down / 2, escape(up)
        )
    return lines + marks + names


def _across(axis: Axis, value: float) -> float:
    return _LEFT + (_WIDTH - 10 - _LEFT) * axis.place(value) / 100


def _up(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * axis.place(value) / 100


def number(value: float) -> str:
    """A tick's number, with a true minus."""
    return f"{value:g}".replace("-", "−")

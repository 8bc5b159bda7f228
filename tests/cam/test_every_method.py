"""Every method on every kind of model, against plain loops over images, channels and masks, or refused in one line."""

import itertools
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcls_jax.cam import METHODS, Sigmoid, explain, explain_all
from tests.conftest import initialiser, long, normal, slow

KEY = jax.random.key(7)
LABELS = jnp.array([1, 0, 2])
OPTIONS = {
    "finer_cam": {"count": 1},
    "group_cam": {"groups": 2, "blur_size": 3, "blur_sigma": 1.0},
    "integrated_grad_cam": {"steps": 3},
    "integrated_gradients": {"steps": 2},
    "is_cam": {"steps": 2},
    "occlusion": {"window": 3, "stride": 2},
    "random_cam": {"key": KEY},
    "rise": {"key": KEY, "masks": 5, "cells": 2},
    "smooth_grad": {"key": KEY, "samples": 2},
    "smooth_grad_cam_pp": {"key": KEY, "samples": 2},
    "ss_cam": {"key": KEY, "samples": 2},
}


class Net(nnx.Module):
    """A convolution of stride 2 with ReLU, pooling and a linear layer; `power` 2 makes the head curved.

    The second input, if there is one, is a gate for each channel.
    """

    def __init__(self, dims, classes=3, power=1, tokens=False):
        draw = initialiser(dims)
        self.conv = nnx.Conv(2, 4, (3,) * dims, strides=2, kernel_init=draw, bias_init=draw, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(4, classes, kernel_init=draw, bias_init=draw, rngs=nnx.Rngs(0))
        self.power, self.tokens = power, tokens

    def features(self, images, gate=None):
        a = jax.nn.relu(self.conv(images))
        return a.reshape(len(a), -1, 4) if self.tokens else a

    def head(self, a, gate=None):
        pooled = (a if self.power == 1 else a**self.power).mean(tuple(range(1, a.ndim - 1)))
        return self.fc(pooled if gate is None else pooled * gate)


class Case(NamedTuple):
    model: Net
    size: tuple[int, ...]
    targets: Any = LABELS
    inputs: tuple[jax.Array, ...] = ()

    @property
    def images(self):
        return normal(3, *self.size, 2)


CASES = {
    "sounds": Case(Net(1, power=2), (9,)),
    "pictures": Case(Net(2), (6, 7)),
    "volumes": Case(Net(3, power=2), (4, 5, 4)),
    "tokens": Case(Net(2, power=2, tokens=True), (6, 7)),
    "one logit": Case(Net(2, classes=1), (6, 7), jnp.zeros(3, int)),
    "many labels": Case(Net(2), (6, 7), Sigmoid(LABELS)),
    "two inputs": Case(Net(2), (6, 7), LABELS, (normal(3, 4, seed=5),)),
}
MASKS = ("score_cam", "ss_cam", "is_cam", "group_cam")
REFUSED = {
    ("sounds", "cam"): "CAM needs an affine score",
    ("volumes", "cam"): "CAM needs an affine score",
    ("tokens", "cam"): "CAM needs an affine score",
    ("many labels", "cam"): "CAM needs an affine score",
    ("sounds", "full_grad"): "FullGrad is for piecewise linear models",
    ("volumes", "full_grad"): "FullGrad is for piecewise linear models",
    ("tokens", "full_grad"): "FullGrad is for piecewise linear models",
    ("many labels", "full_grad"): "FullGrad is for piecewise linear models",
    ("one logit", "finer_cam"): "count .=1. must be",
    ("many labels", "finer_cam"): "must be int labels",
    ("tokens", "guided_grad_cam"): "tokens become a grid",
    **{("tokens", name): "tokens become a grid" for name in MASKS},
}


class One:
    """One image of a case, alone: what the formulas below are written in."""

    def __init__(self, case: Case, index: int):
        self.model, self.x = case.model, case.images[index]
        self.inputs = tuple(extra[index : index + 1] for extra in case.inputs)
        self.target = jax.tree.map(lambda leaf: leaf[index], case.targets)

    def features(self, x):
        return self.model.features(x[None], *self.inputs)[0]

    def pre(self, x):
        """Before the ReLU."""
        return self.model.conv(x[None])[0]

    def logits(self, a):
        return self.model.head(a[None], *self.inputs)[0]

    def score(self, a):
        logits = self.logits(a)
        return self.target(logits) if callable(self.target) else logits[self.target]

    def y(self, x):
        return self.score(self.features(x))

    def p(self, x):
        """The score of Score-CAM and its kind: a probability for labels of several classes."""
        logits = self.logits(self.features(x))
        if callable(self.target) or len(logits) == 1:
            return self.y(x)
        return jax.nn.softmax(logits)[self.target]

    @cached_property
    def a(self):
        return np.asarray(self.features(self.x), float)

    @cached_property
    def g(self):
        return self.gradient(self.a)

    def gradient(self, a):
        return np.asarray(jax.grad(self.score)(jnp.asarray(a, jnp.float32)), float)

    def weighted(self, weights):
        return sum(w * self.a[..., k] for k, w in enumerate(weights))

    def mean(self, array):
        return array.reshape(-1, array.shape[-1]).mean(0)

    def enlarged(self, channel):
        return np.asarray(jax.image.resize(jnp.asarray(channel), self.x.shape[:-1], "linear", antialias=False))

    def mask(self, channel):
        large = self.enlarged(channel)
        return (large - large.min()) / (np.ptp(large) or 1)


def relu(x):
    return np.maximum(x, 0)


def of(one: One, x) -> One:
    """The same for another image."""
    other = object.__new__(One)
    other.model, other.inputs, other.target, other.x = one.model, one.inputs, one.target, jnp.asarray(x, jnp.float32)
    return other


def plus_plus(one, powers):
    g1, g2, g3 = powers
    alpha = [
        g2[..., k] / np.where(d == 0, 1, d)
        for k in range(4)
        for d in [2 * g2[..., k] + one.a[..., k].sum() * g3[..., k]]
    ]
    return one.weighted([(alpha[k] * relu(g1[..., k])).sum() for k in range(4)])


def smooth_plus_plus(one):
    gs = [of(one, one.x + 0.3 * jax.random.normal(key, one.x.shape)).g for key in jax.random.split(KEY, 2)]
    return plus_plus(one, [np.mean([g**n for g in gs], 0) for n in (1, 2, 3)])


def shapley(one):
    a = jnp.asarray(one.a, jnp.float32)
    hessian = np.asarray(jax.hessian(one.score)(a), float).reshape(a.size, a.size)
    return one.weighted(one.mean(one.g - (hessian @ one.a.ravel()).reshape(a.shape) / 2))


def integrated(one):
    maps = []
    for t in range(3):
        step = of(one, t / 3 * one.x)
        maps.append(relu(step.weighted(one.mean(step.g))))
    return np.mean(maps, 0)


def finer(one):
    logits = np.asarray(one.logits(jnp.asarray(one.a, jnp.float32)))
    others = [c for c in range(3) if c != one.target]
    nearest = min(others, key=lambda c: abs(logits[c] - logits[one.target]))
    contrast = of(one, one.x)
    contrast.target = lambda logits: logits[one.target] - logits[nearest]
    return contrast.weighted(contrast.mean(contrast.g))


def score_cam(one, vary=lambda mask, channel: [mask]):
    weights = []
    for k in range(4):
        channel = one.a[..., k]
        masks = vary(one.mask(channel), k)
        weights.append(np.mean([one.p(one.x * mask[..., None]) for mask in masks]) if np.ptp(channel) else 0)
    return one.weighted(weights)


def noisy(mask, channel):
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, channel), sample) for sample in range(2)]
    return [mask + 2 * jax.random.normal(key, mask.shape) for key in keys]


def ablation(one):
    y = float(one.score(jnp.asarray(one.a, jnp.float32)))
    without = [np.where(np.arange(4) == k, 0, one.a) for k in range(4)]
    return one.weighted([(y - float(one.score(jnp.asarray(a, jnp.float32)))) / abs(y) for a in without])


def group_cam(one):
    taps = np.exp(-0.5 * np.array([-1.0, 0, 1]) ** 2)
    blurred = np.asarray(one.x, float)
    for axis in range(one.x.ndim - 1):
        padded = np.pad(blurred, [(1, 1) if i == axis else (0, 0) for i in range(one.x.ndim)], mode="reflect")
        parts = [np.take(padded, np.arange(one.x.shape[axis]) + i, axis) for i in range(3)]
        blurred = sum(t * part for t, part in zip(taps / taps.sum(), parts, strict=True))
    base, w, total = one.p(blurred), one.mean(one.g), 0
    for group in ((0, 1), (2, 3)):
        small = relu(sum(w[k] * one.a[..., k] for k in group))
        mask = one.mask(small)[..., None]
        gain = relu(float(one.p(one.x * mask + blurred * (1 - mask)) - base)) if np.ptp(small) else 0
        total = total + gain * small
    return total


def principal(x, towards=None):
    rows = x.reshape(-1, x.shape[-1])
    rows = rows - rows.mean(0)
    coordinates = rows @ np.linalg.svd(rows)[2][0]
    sign = coordinates[np.abs(coordinates).argmax()] if towards is None else coordinates @ rows.sum(1)
    return (coordinates * np.sign(sign)).reshape(x.shape[:-1])


def kernel_principal(one):
    rows = one.a.reshape(-1, 4)
    rows = rows - rows.mean(0)
    k = np.tanh(rows @ rows.T / 4 + 1)
    centre = np.eye(len(k)) - 1 / len(k)
    values, vectors = np.linalg.eigh(centre @ k @ centre)
    coordinates = vectors[:, -1] * np.sqrt(values[-1])
    return (coordinates * np.sign(coordinates[np.abs(coordinates).argmax()])).reshape(one.a.shape[:-1])


def fem(one):
    flat = one.a.reshape(-1, 4)
    return one.weighted([(flat[:, k] > flat[:, k].mean() + 2 * flat[:, k].std()).mean() for k in range(4)])


def guided(one):
    gate = relu(one.g).reshape(one.pre(one.x).shape) * (one.pre(one.x) > 0)
    return np.asarray(jax.vjp(one.pre, one.x)[1](gate.astype(np.float32))[0]).sum(-1)


def unit(terms):
    return (terms - terms.min()) / np.ptp(terms)


def full_grad(one):
    pixels = unit(np.abs(one.x * jax.grad(one.y)(one.x))).sum(-1)
    bias = unit(np.abs(one.model.conv.bias[...] * one.g * (one.a > 0))).sum(-1)
    return pixels + one.enlarged(bias)


def pixel_mean(one, points):
    return sum(weight * jax.grad(one.y)(x) for x, weight in points)


def occlusion(one):
    size = one.x.shape[:-1]
    total, count = np.zeros(size), np.zeros(size)
    starts = [sorted({min(start, n - 3) for start in range(0, n, 2)}) for n in size]
    for start in itertools.product(*starts):
        window = tuple(slice(s, s + 3) for s in start)
        total[window] += float(one.y(one.x) - one.y(one.x.at[window].set(0)))
        count[window] += 1
    return total / count


def rise(one):
    size = one.x.shape[:-1]
    pitch = [-(-n // 2) for n in size]
    total = 0
    for i in range(5):
        drawing, shifting = jax.random.split(jax.random.fold_in(KEY, i))
        cells = jax.random.bernoulli(drawing, 0.5, (2,) * len(size)).astype(jnp.float32)
        shifts = jax.random.randint(shifting, (len(size),), 0, jnp.asarray(pitch))
        large = jax.image.resize(cells, [3 * p for p in pitch], "linear")
        mask = large[tuple(slice(s, s + n) for s, n in zip(map(int, shifts), size, strict=True))]
        total = total + one.p(one.x * mask[..., None]) * mask
    return total / 5 / 0.5


EXPECTED: dict[str, Callable[[One], np.ndarray]] = {
    "cam": lambda one: one.weighted(one.g.reshape(-1, 4).sum(0)),
    "grad_cam": lambda one: one.weighted(one.mean(one.g)),
    "hires_cam": lambda one: (one.g * one.a).sum(-1),
    "elementwise": lambda one: relu(one.g * one.a).sum(-1),
    "layer_cam": lambda one: (relu(one.g) * one.a).sum(-1),
    "threshold_grad_cam": lambda one: relu(one.mean(one.g) * one.a).sum(-1),
    "xgrad_cam": lambda one: one.weighted(
        [(one.g[..., k] * one.a[..., k]).sum() / (one.a[..., k].sum() or 1) for k in range(4)]
    ),
    "grad_cam_pp": lambda one: plus_plus(one, [one.g**n for n in (1, 2, 3)]),
    "smooth_grad_cam_pp": smooth_plus_plus,
    "shapley_cam": shapley,
    "integrated_grad_cam": integrated,
    "finer_cam": finer,
    "random_cam": lambda one: one.weighted(np.asarray(jax.random.uniform(KEY, (4,), minval=-1, maxval=1))),
    "full_grad": full_grad,
    "group_cam": group_cam,
    "score_cam": score_cam,
    "ss_cam": lambda one: score_cam(one, noisy),
    "is_cam": lambda one: score_cam(one, lambda mask, channel: [mask / 2, mask]),
    "ablation_cam": ablation,
    "eigen_cam": lambda one: principal(one.a),
    "eigen_grad_cam": lambda one: principal(one.g * one.a, "sum"),
    "seg_eigen_cam": lambda one: principal(np.abs(one.g) * one.a),
    "kpca_cam": kernel_principal,
    "fem": fem,
    "guided_backprop": guided,
    "guided_grad_cam": lambda one: guided(one) * one.enlarged(relu(one.weighted(one.mean(one.g)))),
    "input_x_gradient": lambda one: (one.x * jax.grad(one.y)(one.x)).sum(-1),
    "integrated_gradients": lambda one: (
        one.x * pixel_mean(one, [((1 + s / 3**0.5) / 2 * one.x, 1 / 2) for s in (-1, 1)])
    ).sum(-1),
    "smooth_grad": lambda one: pixel_mean(
        one,
        [
            (one.x + 0.15 * np.ptp(one.x) * jax.random.normal(key, one.x.shape), 1 / 2)
            for key in jax.random.split(KEY, 2)
        ],
    ).sum(-1),
    "occlusion": occlusion,
    "rise": rise,
}


def test_every_method_has_a_plain_form_and_a_line_in_the_docs():
    assert EXPECTED.keys() == METHODS.keys()
    docs = (Path(__file__).parents[2] / "docs/methods.md").read_text()
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", docs, re.M)))) >= METHODS.keys()


@pytest.mark.filterwarnings("ignore::dcls_jax.cam.DeadMapWarning")
@pytest.mark.parametrize(
    "name",
    [slow("sounds"), "pictures", slow("volumes"), slow("tokens")]
    + [*map(long, ["one logit", "many labels", "two inputs"])],
)
def test_every_method_is_its_plain_form(name, assert_close):
    case = CASES[name]
    chosen = {
        method: {"method": method, **OPTIONS.get(method, {})} for method in METHODS if (name, method) not in REFUSED
    }
    images = (case.images, *case.inputs) if case.inputs else case.images
    made = explain_all(case.model, images, case.targets, chosen, chunk=2)
    with jax.default_matmul_precision("highest"):
        for (i, one), method in itertools.product(enumerate(One(case, i) for i in range(3)), chosen):
            expected = np.asarray(EXPECTED[method](one))
            difference = np.abs(made[method][i] - expected).max()
            assert difference <= 2e-5 * np.abs(expected).max(), f"{method} differs by {difference}"


@pytest.mark.parametrize(("name", "method"), REFUSED)
def test_what_means_nothing_is_refused_in_one_line(name, method):
    case = CASES[name]
    with pytest.raises(ValueError, match=REFUSED[name, method]):
        explain(case.model, case.images, case.targets, method=method, **OPTIONS.get(method, {}))

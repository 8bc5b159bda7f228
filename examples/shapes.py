"""Outlines of the sample's objects: ten classes, and other shapes that distract from them."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Outline = tuple[Array, ...]  # polygons (points, 2) inside the unit circle: the first is filled, the second is a hole


def points(*coordinates: tuple[float, float]) -> Array:
    return np.array(coordinates, np.float32)


def polar(radius: Array | float, turn: Array) -> Array:
    """Points (n, 2) at `radius` and `turn` (n,), in whole turns from the right."""
    return np.stack([radius * np.cos(2 * np.pi * turn), radius * np.sin(2 * np.pi * turn)], axis=-1).astype(np.float32)


def rotation(angle: float) -> Array:
    """The matrix (2, 2) that turns row vectors by `angle` radians: `points @ rotation(angle)`."""
    return points((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle)))


def circle(radius: float) -> Array:
    return polar(radius, np.linspace(0, 1, 72, endpoint=False))


def regular(*radii: float, repeat: int) -> Array:
    """The corners of a polygon whose radii are `radii`, `repeat` times round."""
    count = len(radii) * repeat
    return polar(np.tile(np.array(radii, np.float32), repeat), np.arange(count) / count)


def heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return points(*zip(16 * np.sin(t) ** 3 / 16.5, -(y + 2.5) / 16.5, strict=True))


def crescent() -> Array:
    return np.concatenate(
        [polar(1.0, np.linspace(0.1, 0.9, 60)), polar(0.75, np.linspace(0.86, 0.14, 60)) + points((0.32, 0.0))]
    )


def spiral() -> Array:
    turn = np.linspace(0.3, 2.3, 120)
    middle = 0.86 * turn / turn[-1]
    return np.concatenate([polar(middle + 0.12, turn), polar(middle - 0.12, turn)[::-1]])


def leaf() -> Array:
    x = np.linspace(-1, 1, 30)
    return points(*zip(x, 0.45 * (1 - x**2), strict=True), *zip(-x, 0.45 * (x**2 - 1), strict=True))


def wave() -> Array:
    x = np.linspace(-0.95, 0.95, 60)
    y = 0.4 * np.sin(1.6 * np.pi * x)
    return points(*zip(x, y - 0.2, strict=True), *zip(x[::-1], y[::-1] + 0.2, strict=True))


def capsule() -> Array:
    end = polar(0.32, np.linspace(-0.25, 0.25, 24)) + points((0.68, 0.0))
    return np.concatenate([end, -end])


CLASSES: dict[str, Outline] = {
    "disc": (circle(0.85),),
    "ring": (circle(0.95), circle(0.52)),
    "square": (regular(1.0, repeat=4),),
    "triangle": (regular(1.0, repeat=3),),
    "star": (regular(1.0, 0.42, repeat=5),),
    "cross": (np.concatenate([points((1, -0.3), (1, 0.3), (0.3, 0.3)) @ rotation(k * np.pi / 2) for k in range(4)]),),
    "crescent": (crescent(),),
    "heart": (heart(),),
    "arrow": (points((1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28), (-1, -0.28), (0.1, -0.28), (0.1, -0.8)),),
    "spiral": (spiral(),),
}
DISTRACTORS: dict[str, Outline] = {
    "leaf": (leaf(),),
    "wave": (wave(),),
    "capsule": (capsule(),),
    "half": (polar(0.9, np.linspace(0, 0.5, 40)) - points((0.0, 0.4)),),
    "bolt": (points((0.3, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)),),
    "hourglass": (points((0.6, 0.8), (-0.6, 0.8), (-0.1, 0), (-0.6, -0.8), (0.6, -0.8), (0.1, 0)),),
    "angle": (points((-0.7, -0.7), (-0.25, -0.7), (-0.25, 0.25), (0.7, 0.25), (0.7, 0.7), (-0.7, 0.7)),),
}

"""Boxes of OpenCV's contours of what is above many cuts through a map at once, without OpenCV.

The contour of an object bounds a component of 8 neighbours, that of a hole a component of 4 neighbours below the cut
and a pixel around it. Components are found among runs, the stretches of rows above a cut, of all cuts together.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse

_EIGHT = np.ones((3, 3), bool)


class Outlines(NamedTuple):
    """Boxes (n, 4) int, x0, y0, x1, y1, ends outside as of `cv2.boundingRect`; of each the number of its cut (n,)."""

    cut: np.ndarray
    box: np.ndarray


def all_outlines(levels: np.ndarray, cuts: np.ndarray) -> Outlines:
    """Every contour of `levels > cut` for each cut, those of holes among them (RETR_TREE).

    levels: (H, W) int, not negative; cuts: (c,) int, not negative and increasing.
    """
    objects = _components(levels, cuts, reach=1)
    holed = np.unique(objects.cut[objects.holes > 0])[::-1]
    # Below a cut is above the negative; with a frame, which begins the first component, the outside is one.
    below = _components(np.pad(-levels, 1), -1 - cuts[holed], reach=0)
    inner = np.diff(below.cut, prepend=-1) == 0
    around = below.box[inner] - [2, 2, 0, 0]  # the frame's pixel, and one around
    return Outlines(np.append(objects.cut, holed[below.cut[inner]]), np.concatenate([objects.box, around]))


def largest_outlines(levels: np.ndarray, cuts: np.ndarray) -> Outlines:
    """Of `all_outlines` for each cut that of the largest area (contourArea); of equals the last to begin, as it lists.

    That of a hole is never larger than that around it.
    """
    cut, box, start, area, holes = _components(levels, cuts, reach=1)
    without_holes = np.zeros(len(cuts))
    np.maximum.at(without_holes, cut, np.where(holes, 0, area))
    at_most = (box[:, 2:] - box[:, :2] - 1).prod(1)
    for number in np.flatnonzero((holes > 0) & (at_most >= without_holes[cut])):
        x0, y0, x1, y1 = box[number]
        components = ndimage.label(levels[y0:y1, x0:x1] > cuts[cut[number]], _EIGHT)[0]
        area[number] = _area(components == components[0, start[number] - x0])
    order = np.lexsort((area, cut))  # stable: of equals the last is last
    last = order[np.flatnonzero(np.diff(cut[order], append=-1))]
    return Outlines(cut[last], box[last])


def _area(component: np.ndarray) -> float:
    """The area of the polygon through the centres of a component's outermost pixels.

    Of a square between four centres, all is inside where the component, its holes filled, has all four pixels, and half
    where it has three.
    """
    outside = ndimage.label(np.pad(~component, 1, constant_values=True))[0]
    filled = (outside != outside[0, 0]).astype(np.int8)
    corners = filled[:-1, :-1] + filled[1:, :-1] + filled[:-1, 1:] + filled[1:, 1:]
    return float(np.count_nonzero(corners == 4) + np.count_nonzero(corners == 3) / 2)


class _Components(NamedTuple):
    """Components (n,), by cut and then by first pixel: number of the cut, box (n, 4), and column of that pixel.

    area: as of `_area`, but less that of holes. holes: how many there are.
    """

    cut: np.ndarray
    box: np.ndarray
    start: np.ndarray
    area: np.ndarray
    holes: np.ndarray


def _components(levels: np.ndarray, cuts: np.ndarray, reach: int) -> _Components:
    """Components of `levels > cut` for each of the increasing cuts; reach: 1 for 8 neighbours, 0 for 4."""
    (height, width), stride = levels.shape, levels.shape[1] + 1
    plane = (height + 1) * stride  # a row and a column between, so that nothing touches what is not its neighbour
    starts, stops = _runs(levels, cuts, plane)
    first = np.searchsorted(stops, starts + stride - reach, side="right")
    count = np.maximum(np.searchsorted(starts, stops + stride + reach) - first, 0)  # of the next row's runs that touch
    upper = np.repeat(np.arange(len(starts)), count)
    lower = np.arange(len(upper)) + np.repeat(first - (count.cumsum() - count), count)
    links = sparse.coo_array((np.ones(len(upper), bool), (upper, lower)), shape=(len(starts), len(starts)))
    number, component = sparse.csgraph.connected_components(links, directed=False)

    left, row = starts % stride, starts % plane // stride
    box = np.tile([width, height, 0, 0], (number, 1))
    for side, (values, outer) in enumerate(
        ((left, np.minimum), (row, np.minimum), (left + stops - starts, np.maximum), (row + 1, np.maximum))
    ):
        outer.at(box[:, side], component, values)
    begin, end = starts[upper] + stride, stops[upper] + stride
    shared = np.minimum(end, stops[lower]) - np.maximum(begin, starts[lower])
    uneven = (begin != starts[lower]).astype(int) + (end != stops[lower])
    squares = np.where(shared > 0, shared - 1 + uneven / 2, 0)  # between two rows
    runs, touching = np.bincount(component, minlength=number), np.bincount(component[upper], minlength=number)
    opening = np.unique(component, return_index=True)[1]
    return _Components(
        starts[opening] // plane,
        box,
        left[opening],
        np.bincount(component[upper], squares, number),
        touching - runs + 1,
    )


def _runs(levels: np.ndarray, cuts: np.ndarray, plane: int) -> tuple[np.ndarray, np.ndarray]:
    """Where runs start and stop, (r,) each in order: plane times the cut's number, and the place in a row after row.

    Between two pixels of a row, a run starts for every cut that is above the left one and below the right one.
    """
    above = np.pad(np.searchsorted(cuts, levels), ((0, 0), (1, 1)))  # how many cuts
    left, right = above[:, :-1].ravel(), above[:, 1:].ravel()
    return _places(left, right, plane), _places(right, left, plane)


def _places(low: np.ndarray, high: np.ndarray, plane: int) -> np.ndarray:
    count = np.maximum(high - low, 0)
    cut = np.arange(count.sum()) + np.repeat(low - (count.cumsum() - count), count)
    return np.sort(cut * plane + np.repeat(np.arange(len(low)), count))

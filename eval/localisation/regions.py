"""What the data say is where: boxes (x0, y0, x1, y1) of pixels counted from 0, both ends inside, and masks (H, W)."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dcls_jax.eval.localisation.maps import Size
from dcls_jax.models import Transform

_LARGE = 0.25  # of the picture, from which on no object is hard to point at


class Region(NamedTuple):
    """Where the objects of one class are in one picture.

    mask: (H, W) bool, all of them together, at the picture's own size. objects: how many there are. difficult: each is
    marked so in the annotations. accompanied: the picture has objects of another class too. ignore: (H, W) bool, pixels
    of which the annotators did not say what they are, if any.
    """

    mask: np.ndarray
    objects: int
    difficult: bool = False
    accompanied: bool = False
    ignore: np.ndarray | None = None

    @property
    def share(self) -> float:
        """How much of the picture the objects cover, from 0 to 1."""
        return float(self.mask.mean())

    @property
    def hard(self) -> bool:
        """Whether it is of the pointing game's difficult subset: less than a quarter of the picture, among others.

        Zhang et al. 2016, Top-down neural attention by excitation backprop (arXiv 1608.00507), section 4.1; computed
        here from the union of the objects.
        """
        return self.share < _LARGE and self.accompanied


def box_mask(boxes: np.ndarray, size: Size) -> np.ndarray:
    """The union of boxes (k, 4) as a mask of size (H, W): bool."""
    mask = np.zeros(size, bool)
    for x0, y0, x1, y1 in np.asarray(boxes, int):
        mask[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = True
    return mask


def box_regions(boxes: np.ndarray, labels: np.ndarray, difficult: np.ndarray, size: Size) -> dict[int, Region]:
    """A region for each class that boxes (k, 4) with labels (k,) name; difficult: (k,) bool.

    A mask takes in the difficult boxes too, as TorchRay's do.
    """
    classes = np.unique(labels).tolist()
    return {
        label: Region(box_mask(boxes[of], size), int(of.sum()), bool(difficult[of].all()), len(classes) > 1)
        for label, of in ((label, labels == label) for label in classes)
    }


def mask_regions(masks: np.ndarray, labels: np.ndarray, ignore: np.ndarray | None = None) -> dict[int, Region]:
    """A region for each class that masks (k, H, W) with labels (k,) name; ignore: (H, W) bool, if any."""
    classes = np.unique(labels).tolist()
    return {
        label: Region(masks[of].any(0), int(of.sum()), accompanied=len(classes) > 1, ignore=ignore)
        for label, of in ((label, labels == label) for label in classes)
    }


def scaled_boxes(boxes: np.ndarray, old: Size, new: Size) -> np.ndarray:
    """Boxes (k, 4) of a picture of size (H, W) in the pixels of another size, truncated: int.

    As clovaai/wsolevaluation does for ground truth.
    """
    (height, width), (new_height, new_width) = old, new
    ends = np.array([new_width, new_height] * 2, float), np.array([width, height] * 2, float)
    return (np.asarray(boxes, float) * ends[0] / ends[1]).astype(int)


def cropped(region: Region, transform: Transform) -> Region:
    """A region of the part of the picture that a model sees: its mask (crop, crop) is how much of a pixel is inside.

    The shorter side is resized (bilinear on 8 bits by Pillow) and the centre kept, as of the image; ignored pixels too.
    """
    ignore = None if region.ignore is None else _cropped(region.ignore, transform) > 0.5
    return region._replace(mask=_cropped(region.mask, transform), ignore=ignore)


def _cropped(mask: np.ndarray, transform: Transform) -> np.ndarray:
    height, width = (transform.resize * side // min(mask.shape) for side in mask.shape)
    left, top = round((width - transform.crop) / 2), round((height - transform.crop) / 2)
    whole = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(whole.crop((left, top, left + transform.crop, top + transform.crop))) / 255


def box_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) with boxes (m, 4), counted in pixels: (n, m) float64."""
    a, b = np.asarray(a)[:, None], np.asarray(b)[None]
    inside = _pixels(np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], -1))
    return inside / (_pixels(a) + _pixels(b) - inside)


def _pixels(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2] + 1).clip(0).prod(-1)

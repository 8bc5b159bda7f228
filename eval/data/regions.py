"""What data say of where objects are, as masks."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dcls_jax.eval.boxes import Size, box_mask
from dcls_jax.models import Transform

NO_BOXES = np.zeros((0, 4), int)
_LARGE = 0.25  # of the picture, from which on no object is hard to point at


class Region(NamedTuple):
    """Where the objects of one class are in one picture.

    mask: (H, W) bool, all of them together, at the picture's own size. boxes: (k, 4) int, those it is made of, if of
        boxes: x0, y0, x1, y1, counted from 0, both ends inside.
    difficult: each object is marked so in the annotations. accompanied: the picture has objects of another class too.
    ignore: (H, W) bool, pixels of which the annotators did not say what they are, if any.
    """

    mask: np.ndarray
    boxes: np.ndarray = NO_BOXES
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


def box_regions(boxes: np.ndarray, labels: np.ndarray, difficult: np.ndarray, size: Size) -> dict[int, Region]:
    """A region for each class that boxes (k, 4) with labels (k,) name; difficult: (k,) bool.

    A mask takes in the difficult boxes too, as TorchRay's do.
    """
    classes = np.unique(labels).tolist()
    return {
        label: Region(box_mask(boxes[of], size), boxes[of], bool(difficult[of].all()), len(classes) > 1)
        for label, of in ((label, labels == label) for label in classes)
    }


def mask_regions(masks: np.ndarray, labels: np.ndarray, ignore: np.ndarray | None = None) -> dict[int, Region]:
    """A region for each class, of masks (k, H, W) with labels (k,); ignore: (H, W) bool, if any."""
    return {
        int(label): Region(mask, accompanied=len(labels) > 1, ignore=ignore)
        for label, mask in zip(labels, masks, strict=True)
    }


def cropped(region: Region, transform: Transform) -> Region:
    """A region of the part of the picture that a model sees: its mask (crop, crop) is how much of a pixel is inside.

    It is resized (bilinear on 8 bits by Pillow) and the centre kept, as of the image; ignored pixels too.
    """
    ignore = None if region.ignore is None else _cropped(region.ignore, transform) > 0.5
    return region._replace(mask=_cropped(region.mask, transform), ignore=ignore)


def _cropped(mask: np.ndarray, transform: Transform) -> np.ndarray:
    width, height = transform.resized(*reversed(mask.shape))
    left, top = round((width - transform.crop) / 2), round((height - transform.crop) / 2)
    whole = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(whole.crop((left, top, left + transform.crop, top + transform.crop))) / 255

"""The published data sets of localisation by name: their sources, and the presets that are made for them."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal

from dcls_jax.eval.data.source import Located
from dcls_jax.eval.localisation.evaluation import Annotated
from dcls_jax.eval.localisation.protocols import INSIDE_PRESETS
from dcls_jax.eval.localisation.wsol import BOX_PRESETS

Name = Literal["imagenet", "voc", "voc_masks", "coco2014", "coco2017"]
PRESETS_OF: dict[Name, Sequence[str]] = {
    "imagenet": (*INSIDE_PRESETS, *BOX_PRESETS),
    "voc": ("torchray_voc", "torchray_voc_difficult"),
    "voc_masks": ("voc_masks",),
    "coco2014": ("torchray_coco", "torchray_coco_difficult"),
    "coco2017": ("group_cam_coco",),
}
Path = str | PathLike[str]


def source_of(name: Name, pictures: Path | None = None, annotations: Path | None = None) -> Located[Annotated]:
    """The pictures of a data set, each with its regions.

    pictures: the folder of ImageNet's or COCO's pictures, or VOCdevkit/VOC2012; ImageNet and VOC 2007 are TFDS's unless
    given. annotations: the folder of `imagenet.read_annotations`, or COCO's instances_*.json. Raises ValueError for
    what is needed and not given, or given and not needed, and as the sources in `eval/data/` do.
    """
    from dcls_jax.eval.data import coco, imagenet, voc

    if name == "imagenet":
        boxes = "a folder with metadata/ILSVRC/test of github.com/clovaai/wsolevaluation, for the boxes"
        known = imagenet.read_annotations(_given(name, "annotations", annotations, boxes))
        return imagenet.ImageNet(annotations=known) if pictures is None else imagenet.ImageNetFiles(pictures, known)
    if name in ("coco2014", "coco2017"):
        year = name.removeprefix("coco")
        return coco.CocoMasks(
            _given(name, "pictures", pictures, f"the folder val{year}"),
            _given(name, "annotations", annotations, f"the file instances_val{year}.json"),
        )
    _not_given(name, "annotations", annotations)
    if name == "voc_masks":
        return voc.VocMasks(_given(name, "pictures", pictures, "the folder VOCdevkit/VOC2012"))
    _not_given(name, "pictures", pictures)
    return voc.Voc()


def _given(name: str, argument: str, path: Path | None, what: str) -> Path:
    if path is None:
        raise ValueError(f"{argument} must be given for {name}: {what}")
    return path


def _not_given(name: str, argument: str, path: Path | None) -> None:
    if path is not None:
        raise ValueError(f"{argument} (={str(path)!r}) must not be given for {name}")

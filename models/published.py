"""The published checkpoints: where they are, and how they are fetched."""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published file, and what is known of its hash.

    Of files with a `doi`, the Zenodo record gives the MD5. A name in PyTorch's fashion, such as x-14fe96d1.pth, ends
    with the beginning of its SHA-256. The ConvNeXts, MetaFormers and FastViTs of the original authors were published
    without one: of these the server's size is checked and, when they are loaded, every key and shape.
    """

    url: str
    doi: str | None = None
    sha256: str | None = None

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def sha256_begins(self) -> str:
        """What is known of the hash from the file's name; "" for nothing."""
        named = re.search(r"-([0-9a-f]{8,64})\.pth", self.file)
        return named[1] if named else ""


def _zenodo(record: int, file: str) -> Published:
    return Published(f"https://zenodo.org/records/{record}/files/{file}", f"10.5281/zenodo.{record}")


def _convnext(size: str) -> dict[tuple[str, bool], Published]:
    file = f"convnext_{size}_1k_224_ema.pth"
    return {
        (f"convnext_{size}", False): Published(f"https://dl.fbaipublicfiles.com/convnext/{file}"),
        (f"convnext_{size}", True): _zenodo(7112021, f"convnext_dcls_{size}_1k_224_ema.pth"),
    }


def _fastvit(size: str) -> dict[tuple[str, bool], Published]:
    folder = "https://docs-assets.developer.apple.com/ml-research/models/fastvit/image_classification_models"
    return {
        (f"fastvit_{size}", False): Published(f"{folder}/fastvit_{size}.pth.tar"),
        (f"fastvit_{size}", True): _zenodo(8370737, f"fastvit_{size}_v1_17lim_34el_seed0.pth.tar"),
    }


# (name of the model, with DCLS) -> file
CHECKPOINTS: dict[tuple[str, bool], Published] = {
    ("resnet50", False): Published(
        "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/"
        "resnet50_a1_0-14fe96d1.pth"
    ),
    ("resnet50", True): _zenodo(8373830, "resnet_dcls_kernel_5_model_best.pth.tar"),
    **_convnext("tiny"),
    **_convnext("small"),
    **_convnext("base"),
    ("caformer_s18", False): Published("https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18.pth"),
    ("caformer_s18", True): _zenodo(8370737, "caformer_s18_v1_17lim_34el_seed0.pth.tar"),
    ("convformer_s18", False): Published("https://huggingface.co/sail/dl/resolve/main/convformer/convformer_s18.pth"),
    **_fastvit("sa24"),
    **_fastvit("sa36"),
    ("convformer_s18", True): _zenodo(8370737, "convformer_s18_v1_17lim_40el_seed0.pth.tar"),
}


class DownloadError(OSError):
    """A checkpoint that could not be fetched."""


def cache_folder() -> Path:
    """Where fetched checkpoints are kept: $DCLS_JAX_CACHE, or the user's cache folder."""
    import pooch

    return Path(os.environ.get("DCLS_JAX_CACHE") or pooch.os_cache("dcls_jax"))


def fetch(name: str, *, dcls: bool) -> Path:
    """Path of a published checkpoint, downloaded with a progress bar unless it is there.

    It is checked by its size, and by its hash as far as that is known (see `Published`), before it takes its name.
    Raises DownloadError, which says where to get the file and where to put it.
    """
    published = CHECKPOINTS[name, dcls]
    target = cache_folder() / published.file
    if target.exists():
        return target
    import pooch
    import requests

    try:
        if published.doi is not None:
            record = pooch.create(target.parent, f"doi:{published.doi}/")
            record.load_registry_from_doi()
            record.fetch(published.file, progressbar=True)
        else:
            download = partial(_download, begins=published.sha256_begins)
            pooch.retrieve(published.url, published.sha256, published.file, target.parent, downloader=download)
    except (requests.RequestException, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DownloadError(
            f"could not download {published.file}: get it from {published.url} and put it at {target} ({reason})"
        ) from error
    return target


def _download(url: str, path: str, pooch: Any, *, begins: str) -> None:
    """Pooch's own, which raises where bytes are missing; ValueError for a SHA-256 that begins otherwise."""
    from pooch import HTTPDownloader, file_hash

    HTTPDownloader(progressbar=True)(url, path, pooch)
    found = file_hash(path)
    if not found.startswith(begins):
        raise ValueError(f"its SHA-256 hash begins with {found[:8]}, expected {begins}")

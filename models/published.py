"""What is published of a model: settings, and checkpoints, where they are and how they are fetched."""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dcls_jax.layers import DclsConfig


@dataclass(frozen=True)
class Accuracy:
    """What a file reaches on ImageNet-1k's validation pictures, in percent, and who says so.

    source: "authors", in the README of their repository (facebookresearch/ConvNeXt, K-H-Ismail/ConvNeXt-dcls aad45f3,
    sail-sg/metaformer, apple/ml-fastvit), or "timm", as huggingface/pytorch-image-models aa4b585 measured it
    (results/results-imagenet.csv).
    """

    source: str
    top_1: float
    top_5: float | None = None


@dataclass(frozen=True)
class Published:
    """A published file, what is known of its hash, and what accuracy is said of it.

    Of files with a `doi`, the Zenodo record gives the MD5. A name in PyTorch's fashion, such as x-14fe96d1.pth, ends
    with the beginning of its SHA-256. The ConvNeXts, MetaFormers and FastViTs of the original authors were published
    without one: of these the server's size is checked and, when they are loaded, every key and shape.
    """

    url: str
    doi: str | None = None
    sha256: str | None = None
    accuracy: tuple[Accuracy, ...] = ()

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def sha256_begins(self) -> str:
        """What is known of the hash from the file's name; "" for nothing."""
        named = re.search(r"-([0-9a-f]{8,64})\.pth", self.file)
        return named[1] if named else ""


def zenodo(record: int, file: str, *accuracy: Accuracy) -> Published:
    """A file of a Zenodo record."""
    return Published(f"https://zenodo.org/records/{record}/files/{file}", f"10.5281/zenodo.{record}", None, accuracy)


@dataclass(frozen=True)
class Variant:
    """A named model: its family's config, the DCLS setting that was published, and the weights without and with it."""

    config: Any
    dcls: DclsConfig
    checkpoint: Published
    dcls_checkpoint: Published


class DownloadError(OSError):
    """A checkpoint that could not be fetched."""


def cache_folder() -> Path:
    """Where fetched checkpoints are kept: $DCLS_JAX_CACHE, or the user's cache folder."""
    import pooch

    return Path(os.environ.get("DCLS_JAX_CACHE") or pooch.os_cache("dcls_jax"))


def fetch(published: Published) -> Path:
    """Path of a published file, downloaded with a progress bar unless it is there.

    It is checked by its size, and by its hash as far as that is known (see `Published`), before it takes its name.
    Raises DownloadError, which says where to get the file and where to put it.
    """
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

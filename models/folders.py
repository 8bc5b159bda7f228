"""Orbax checkpoints, folders of nested numpy arrays: read, and written beside what they replace before they do."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dcls_jax.errors import reason, said_once, system_error
from dcls_jax.files import as_path, is_url
from dcls_jax.models.locks import hold
from dcls_jax.models.state_dicts import HUB, CheckpointError, shortened

_MARKER = "_CHECKPOINT_METADATA"
_ENTRIES = {_MARKER, "orbax.checkpoint", "commit_success.txt", "state"}


def absolute(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path from the root, ~ being the user's home. Raises ValueError for a URL."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(f"{os.fspath(path)} is a URL, expected a path")
    return pathlib.Path(os.path.expanduser(path)).absolute()


def place_of(weights: str | os.PathLike[str]) -> pathlib.Path:
    """Where a checkpoint is read from: a path from the root, or what a URL names."""
    return as_path(weights) if is_url(weights) else absolute(weights)


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder is an Orbax checkpoint."""
    return (folder / _MARKER).is_file()


def check_replaceable(folder: pathlib.Path) -> None:
    """Raise FileExistsError unless a checkpoint at `folder` would replace nothing but another one."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is not a folder; remove it or choose another place for the checkpoint")
    names = {path.name for path in folder.iterdir()}
    if others := names - _ENTRIES if is_checkpoint(folder) else names:
        raise FileExistsError(
            f"{folder} has what no checkpoint of weights has ({min(others)}); choose another folder for the checkpoint"
        )


def write_tree(
    tree: Mapping[str, Any], folder: pathlib.Path, check: Callable[[pathlib.Path], object] | None = None
) -> None:
    """Write nested dicts of numpy arrays as an Orbax checkpoint, which replaces one at `folder` once it is complete.

    Until then it is in .NAME.dcls_jax beside the folder, and two renames swap it for the old one, which is whole at any
    time: there alone after a kill between the two, until the next call puts it back. A link to a folder stays one.
    Ctrl-C waits for the end, unless it is pressed twice.
    check: is given the complete checkpoint before it takes its name, which it does not if this raises.

    Raises FileExistsError as `check_replaceable` does, InUseError (an OSError) where another process writes there, and
    OSError where nothing can be written.
    """
    folder = pathlib.Path(os.path.realpath(folder))
    check_replaceable(folder)
    with _uninterrupted():
        _write(tree, folder, folder.with_name(f".{folder.name}.dcls_jax"), check)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dcls_jax.models.folders")


def _write(
    tree: Mapping[str, Any],
    folder: pathlib.Path,
    beside: pathlib.Path,
    check: Callable[[pathlib.Path], object] | None,
) -> None:
    from orbax.checkpoint import v1 as ocp

    first = jax.process_index() == 0
    with _held(folder, beside) if first else contextlib.nullcontext():
        try:
            with _plain(beside) as place, said_once():
                ocp.save(place / "new", tree)
        except Exception as error:  # orbax raises many kinds for what is one thing to the user
            raise system_error(error, folder) from error
        if check is not None:
            check(beside / "new")
        if first:
            check_replaceable(folder)  # so much time later
            if folder.exists():
                folder.rename(beside / "old")
            (beside / "new").rename(folder)


@contextlib.contextmanager
def _held(folder: pathlib.Path, beside: pathlib.Path) -> Iterator[None]:
    """`beside`, made and held for as long as `folder` is written, without what a call that was killed left there."""
    beside.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(beside, folder)
    except OSError:
        with contextlib.suppress(OSError):
            beside.rmdir()  # where nothing is in it
        raise
    with open(lock):
        try:
            _put_back(folder, beside)
            for unfinished in beside.glob("new*"):  # Orbax has a longer name until it is complete
                shutil.rmtree(unfinished, ignore_errors=True)
            yield
        finally:
            _put_back(folder, beside)
            shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """One Ctrl-C waits for the end of what is inside: stopped halfway, Orbax leaves threads that never end."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []

    def later(number: int, frame: FrameType | None) -> None:
        if waiting:
            handler(number, frame)
        waiting.append((number, frame))

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])


def _put_back(folder: pathlib.Path, beside: pathlib.Path) -> None:
    """Put the old checkpoint back where there is no new one, else remove it."""
    if folder.exists():
        shutil.rmtree(beside / "old", ignore_errors=True)
    elif (beside / "old").exists():
        (beside / "old").rename(folder)


@contextlib.contextmanager
def _plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder, or a link to it for as long as Orbax needs, to which some characters and names have a meaning."""
    if re.fullmatch(r"[\w /.,+=~-]*", folder.as_posix()) and "orbax-checkpoint-tmp" not in folder.name:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = pathlib.Path(place, "checkpoint")
        link.symlink_to(folder, target_is_directory=True)
        yield link


def read_tree(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an Orbax checkpoint by their path, joined by dots. Raises CheckpointError."""
    from orbax.checkpoint import v1 as ocp

    try:
        with _plain(folder) as place, said_once():
            tree = ocp.load(place)
    except Exception as error:  # orbax raises many kinds for what is one thing to the user
        if not is_checkpoint(folder):
            has = ", ".join(shortened(sorted(path.name for path in folder.iterdir()), 3)) or "nothing"
            expected = f"an Orbax checkpoint, or {' or '.join(HUB)} in it"
            raise CheckpointError(f"{folder} is no checkpoint: it has {has}, expected {expected}") from error
        raise CheckpointError(f"{folder} is not a readable Orbax checkpoint: {reason(error)}") from error
    if not isinstance(tree, Mapping | list | tuple):
        raise CheckpointError(f"{folder} holds a single {type(tree).__name__}, expected arrays by name")
    return {".".join(path): np.asarray(leaf) for path, leaf in _flat(tree)}


def _flat(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, Mapping | list | tuple):
        yield path, tree
        return
    for name, node in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from _flat(node, (*path, str(name)))

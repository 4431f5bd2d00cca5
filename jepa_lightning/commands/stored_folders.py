"""Folders of data that a checkpoint names: absolute from the training on, checked before a command reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.data.image_files import EXTENSIONS
from jepa_lightning.data.video_sources import VIDEO_EXTENSIONS
from jepa_lightning.weights import CheckpointError

PLACES = ("root", "train", "val", "test", "files", "urls")
"""Options of data that name folders, or lists of files."""
KNOWN = tuple(EXTENSIONS | VIDEO_EXTENSIONS | {".npz", ".npy", ".tar", ".parquet", ".h5", ".hdf5"})
"""Ends of the names of files that hold samples."""
MOST_ENTRIES = 20_000
"""How many files and folders are looked at until one of these is found."""


def make_absolute(data: Any) -> None:
    """Make the folders of a ``data`` section absolute in place, so that a checkpoint finds them from anywhere.

    Args:
        data: A dict or a Namespace of jsonargparse.
    """
    for section in _sections(data):
        for name in PLACES:
            value = section.get(name)
            if isinstance(value, str) and "://" not in value and _is_there(value):
                section[name] = str(Path(value).expanduser().absolute())


def check_folders(path: Path | str, data: Any) -> None:
    """Check that a command may read the folders that a checkpoint names, and say which they are.

    A folder must be there, and have images, videos or episodes among its first entries. The root of the file system, a
    home folder and an address in a network are never read because a file says so.

    Args:
        path: The checkpoint, for messages.
        data: Its ``data`` section.

    Raises:
        CheckpointError: If one may not be read, or is not there.
    """
    found = []
    for section in _sections(data):
        own = "class_path" not in section  # arguments of a source, or of the data module
        for name in PLACES if own else ():
            value = section.get(name)
            entries = value if isinstance(value, list) else [value]
            found += [_checked(path, entry, "download" in section) for entry in entries if isinstance(entry, str)]
    if found:
        rank_zero_info(f"{path}: the data are read from {', '.join(dict.fromkeys(map(str, found)))}")


def _checked(path: Path | str, named: str, download: bool) -> Path:
    remedy = "say where the data are: --data.root FOLDER (or --data.source ...)"
    if "://" in named or named.startswith(("//", "\\\\")):
        raise CheckpointError(f"{path} names data in a network, {named[:200]}, which were not opened: {remedy}")
    if not download and not _is_there(named):
        raise CheckpointError(f"{path} was trained on {named[:200]!r}, which is not in {Path.cwd()}: {remedy}")
    place = Path(named).expanduser().resolve()
    if place == Path(place.anchor) or Path.home().resolve().is_relative_to(place):
        raise CheckpointError(
            f"{path} names {named[:200]} ({place}) as its data, the root of the file system or a home folder, which "
            f"was not read: {remedy}"
        )
    if download:  # a data set of torchvision: it looks for its own files
        return place
    if not place.is_dir() and not place.is_file():
        raise CheckpointError(f"{path} names {place} as its data, a device or a pipe, which was not read: {remedy}")
    if place.is_dir() and not _has_samples(place):
        raise CheckpointError(
            f"{path} names {place} as its data, and no images, videos or episodes are among the first "
            f"{MOST_ENTRIES:,} entries of it: {remedy}"
        )
    return place


def _is_there(name: str) -> bool:
    """Whether there is such a file or folder; names that no file can have are none."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _has_samples(folder: Path) -> bool:
    """Whether a file that holds samples is soon found; folders of a depth of at most eight."""
    seen, waiting = 0, [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    seen += 1
                    if entry.name.lower().endswith(KNOWN):
                        return True
                    if seen > MOST_ENTRIES:
                        return False
                    if depth < 8 and not entry.name.startswith(".") and entry.is_dir():
                        waiting.append((Path(entry.path), depth + 1))
        except OSError:  # may not be read
            continue
    return False


def _sections(value: Any) -> Iterator[Any]:
    """Every dict or Namespace in a section."""
    if isinstance(value, list):
        for entry in value:
            yield from _sections(entry)
    elif hasattr(value, "items"):
        yield value
        for _, entry in list(value.items()):
            yield from _sections(entry)

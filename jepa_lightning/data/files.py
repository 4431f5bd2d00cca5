"""Files below a folder: finding them, naming them, and which of them are held out."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm

NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of what no line of text can hold: control characters, bytes that are no UTF-8, line separators."""


def check_file(path: str | Path, error: type[ValueError] = ValueError) -> str:
    """The path as a string, unless there is something that cannot be read; nothing is opened.

    Args:
        path: The file.
        error: What is raised.

    Raises:
        ValueError: If it is a folder, a named pipe or a device, or an empty file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  # every image comes by here: pathlib takes several times as long
    except FileNotFoundError:
        return str(path)  # the decoder says so, or knows what kind of address it is
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return str(path)
    name = printable(str(path))
    if stat.S_ISDIR(status.st_mode):
        raise error(f"{name} is a folder: give a file")
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{name} is a named pipe or a device: give a file")
    raise error(f"{name} is empty (0 bytes): remove or replace it")


def printable(name: str) -> str:
    """A file name in one line of UTF-8: bytes that are no text, and line breaks, as escapes."""
    if name.isprintable():
        return name
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) in NO_TEXT else character for character in name
    )


def find_files(folder: Path, extensions: Collection[str]) -> list[str]:
    """Paths of the files with these extensions below a folder, relative to it, sorted.

    Links are followed, but not to a folder that they are in. Hidden names (``.x``, ``__MACOSX``) are left out.

    Args:
        folder: The folder.
        extensions: In lower case, with their dots.
    """
    walk = tqdm(_walk(folder), desc=f"Listing {printable(str(folder))}", unit=" folders", delay=2, disable=None)
    endings = tuple(extensions)
    return sorted(name for names in walk for name in names if name.lower().endswith(endings))


def is_hidden(name: str) -> bool:
    """Whether other programs hide files or folders of this name."""
    return name.startswith(".") or name == "__MACOSX"


def _walk(root: Path) -> Iterator[list[str]]:
    """The files in each folder."""
    left = [("", frozenset[tuple[int, int]]())]
    while left:
        below, above = left.pop()
        folder, status = printable(str(root / below)), (root / below).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            rank_zero_warn(f"{folder} is a link to a folder that it is in: not followed")
            continue
        try:
            with os.scandir(root / below) as entries:
                seen = [entry for entry in entries if not is_hidden(entry.name)]
        except PermissionError:
            rank_zero_warn(f"{folder} may not be read: its files are left out")
            continue
        prefix = f"{below}/" if below else ""
        folders = {entry.name for entry in seen if _is_folder(entry)}
        left += [(prefix + name, above | {here}) for name in folders]
        yield [prefix + entry.name for entry in seen if entry.name not in folders]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def held_out(names: Sequence[str], labels: Sequence[Any], fraction: float) -> list[bool]:
    """Which samples are kept for validation: by a hash of the name, so that the choice stays when samples are added.

    Of a class with two or more samples at least one is kept, and at least one is left for training; a single one is for
    training, unless nothing would be kept.

    Args:
        names: Of the samples.
        labels: Of the samples; those without a label (-1) are a class of their own.
        fraction: From 0, for none, to below 1.

    Raises:
        ValueError: If the fraction is another number.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"the fraction that is held out must be from 0 to below 1, not {fraction}")
    hashes = [_hash(name) for name in names]
    chosen = [value < fraction for value in hashes]
    classes: dict[Any, list[int]] = {}
    for position, label in enumerate(labels):
        classes.setdefault(label, []).append(position)
    for members in classes.values() if fraction else ():
        members.sort(key=hashes.__getitem__)
        chosen[members[0]] = True
        chosen[members[-1]] = False  # the only one, too
    if fraction and len(names) > 1 and not any(chosen):  # every sample is a class of its own
        chosen[min(range(len(names)), key=hashes.__getitem__)] = True
    return chosen


def _hash(name: str) -> float:
    """A number in [0, 1) that follows from the name."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "little") / 2.0**48

"""Reads untrusted files of torch.save: no code in them is executed, and claimed sizes are checked."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.weights.policy import Unreadable

LARGEST_PICKLE = 32 * 2**20
"""Bytes. The pickle of a training with 10 GB of tensors has less than one megabyte."""
MOST_OPERATIONS = 3 * 10**6
"""In a pickle; each costs microseconds. The pickle of a training with 10 GB of tensors has less than 100,000."""
LARGEST_TUPLE = 10**6
"""Values in a tuple, including those of the tuples in it, each as often as it occurs."""
LARGEST_CLAIM = 8
"""How many times the bytes of the file its tensors may claim, one gigabyte aside: some share their values."""
MADV_PAGEOUT = 21
"""Linux: these pages are not needed soon. Unlike MADV_DONTNEED it loses nothing, wherever they are."""
MARK = object()


def read_torch(path: Path) -> Any:
    """The content of a file that torch.save wrote; its tensors stay in the file until they are taken.

    Args:
        path: A file that is there.

    Raises:
        Unreadable: Not such a file, damaged, one that wants to run code, or one that claims to be larger than it is.
    """
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # which torch.save never has
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_claims(path, content)
    except Exception as error:  # damage can raise anything
        reason = _reason(error)
        raise Unreadable(f"{path} is not a PyTorch checkpoint that can be read safely: {reason}") from error
    return content


def own(tensor: Tensor) -> Tensor:
    """The values of a tensor in memory of their own, in float32 if they are floating-point.

    The pages of the file that they were read from are given back: they count as memory of this process otherwise.
    """
    values = tensor.float() if tensor.is_floating_point() else tensor
    values = values.clone(memory_format=torch.contiguous_format) if values is tensor else values.contiguous()
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (tensor.data_ptr() + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.is_contiguous() and whole > 0 and os.uname().sysname == "Linux":  # a hint: it does not matter if it fails
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), MADV_PAGEOUT)
    return values


def checksums(path: Path) -> frozenset[tuple[int, int]]:
    """Size and CRC-32 of every record of an archive."""
    with zipfile.ZipFile(path) as archive:
        return frozenset((entry.file_size, entry.CRC) for entry in archive.infolist())


def _check_archive(path: Path) -> None:
    """Check that a zip archive holds what its size allows, before anything in it is read."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError("it is empty (0 bytes): copy it again")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            raise ValueError(f"it is truncated ({size:,} bytes are there): copy it again")
        raise ValueError("it is no file of torch.save (or one from before PyTorch 1.6: save it again)")
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} in it is compressed, which torch.save never does")
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("its parts claim to be larger than the whole")
        for entry in archive.infolist():
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > LARGEST_PICKLE:
                    raise ValueError(f"{entry.filename} in it has {entry.file_size:,} bytes: no training has that")
                _check_pickle(archive.read(entry))  # compares its checksum, too


def _check_pickle(text: bytes) -> None:
    """Check that no tuple in it holds itself a million times over, whose hash would take for ever; nothing is executed.

    Each value counts one, a tuple as much as all that is in it: that is how many steps its hash takes.
    """
    stack: list[Any] = []
    memory: dict[Any, int] = {}
    for number, (operation, argument, _) in enumerate(pickletools.genops(text)):
        if number == MOST_OPERATIONS:
            raise ValueError(f"its pickle has more than {MOST_OPERATIONS:,} operations: no training has that")
        name, before = operation.name, operation.stack_before
        if "PUT" in name:
            memory[argument] = stack[-1]
            continue
        taken: list[int] = []
        if pickletools.markobject in before:
            while (value := stack.pop()) is not MARK:
                taken.append(value)
            before = before[: before.index(pickletools.markobject)]
        taken += [stack.pop() for _ in before]
        made = memory[argument] if name.endswith("GET") else 1 + sum(taken) if name.startswith("TUPLE") else 1
        if made > LARGEST_TUPLE:
            raise ValueError("its pickle is a bomb: a tuple that holds itself millions of times")
        stack += [MARK if kind is pickletools.markobject else made for kind in operation.stack_after]


def _check_claims(path: Path, content: Any) -> None:
    """Check that the tensors are not far larger than the file, as one value repeated a billion times would be."""
    claimed, seen, waiting = 0, set(), [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            if item.device.type != "cpu":
                raise ValueError("it has tensors without values: save it from the CPU")
            claimed += item.numel() * item.element_size()
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item
    if claimed > LARGEST_CLAIM * path.stat().st_size + 2**30:
        raise ValueError(f"its tensors claim {claimed / 2**30:,.1f} GB, the file has {path.stat().st_size:,} bytes")


def _reason(error: Exception) -> str:
    """One line of what PyTorch says in many, with no advice to read the file unsafely."""
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text) or re.search(r"Trying to (?:call|instantiate) (\S+)", text)
    if wanted:
        return (
            f"it wants to run {wanted[1]}, which was not done. If you trust whoever made it, load it with "
            "torch.load(weights_only=False) and save its tensors alone"
        )
    odd = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    if odd:
        return f"it is damaged ({odd[1]}): copy it again"
    if isinstance(error, ValueError) and error.__traceback__ is not None and text:
        return text.splitlines()[0]
    return f"it is damaged ({type(error).__name__}: {text.splitlines()[0][:200] if text else 'no reason given'})"

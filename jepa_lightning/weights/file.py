"""Reads files of unknown origin: nothing in them is executed, and sizes that they claim are checked.

A file of torch.save is opened once, memory-mapped. Its tensors stay in the file until somebody takes them, and are then
compared with the checksums of the archive.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jepa_lightning.weights.policy import DoesNotFit, UnknownFormat, Unreadable, policy
from jepa_lightning.weights.torch_file import checksums, own, read_torch

LARGEST_DESCRIPTION = 32 * 2**20
"""Bytes of a JSON file."""
SUFFIXES = {".ckpt", ".pt", ".pth", ".tar", ".bin", ".safetensors", ".yaml"}
"""Of files: a name that ends so is never looked for on the hub."""


# ---------------------------------------------------------------------- one file, read once


class File:
    """A checkpoint on disk, read once; nobody knows yet what it is.

    Attributes:
        path: The file or folder.
        content: What torch.save wrote; the tensors of a safetensors file; empty for a folder.
        metadata: The header of a safetensors file; empty otherwise.
        by_torch: Whether torch.save wrote it.
    """

    def __init__(self, path: Path, content: dict[Any, Any], metadata: dict[str, str], by_torch: bool) -> None:
        self.path, self.content, self.metadata, self.by_torch = path, content, metadata, by_torch
        self._checksums = checksums(path) if by_torch else frozenset()
        self._checked: set[tuple[int, int]] = set()

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json`` of the folder, or the one beside the file; empty without one."""
        about = (self.path if self.path.is_dir() else self.path.parent) / "config.json"
        return read_json(about) if about.is_file() else {}

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """The values of a tensor in memory of their own, in float32 if they are floating-point.

        Args:
            name: Name of the tensor, for messages.
            tensor: A tensor of this file.

        Raises:
            Unreadable: If the values are not those that were written.
            DoesNotFit: If a value is infinite or not a number.
        """
        self.check(name, tensor)
        values = own(tensor)
        if tensor.dtype == torch.float64 and not policy().allow_non_finite and not bool(torch.isfinite(values).all()):
            raise DoesNotFit(f"{self.path}: {name} has values that are too large for float32: it is no trained network")
        return values

    def check(self, name: str, tensor: Tensor) -> None:
        """Compare a tensor with the checksums of the file, and look for values that are not finite; see ``take``."""
        if tensor.layout != torch.strided:
            raise DoesNotFit(f"{self.path}: {name} is no plain tensor ({tensor.layout})")
        storage = tensor.untyped_storage()
        place = (storage.data_ptr(), storage.nbytes())
        if self._checksums and place not in self._checked:
            values = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            if (len(values), zlib.crc32(values.data)) not in self._checksums:
                raise Unreadable(f"{self.path} is damaged: the checksum of {name} is wrong: copy the file again")
            self._checked.add(place)
        floating = tensor.is_floating_point() or tensor.is_complex()
        if floating and tensor.element_size() == 1:
            raise DoesNotFit(f"{self.path}: {name} is {tensor.dtype}: save it in float16 or wider")
        if floating and not policy().allow_non_finite and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise DoesNotFit(
                f"{self.path}: {name} has {count:,} of {tensor.numel():,} values that are infinite or not a number: "
                "give an earlier checkpoint of that training, or --allow_non_finite (allow_non_finite=True) to look at "
                "it"
            )

    def check_all(self, tensors: Any, name: str = "") -> None:
        """``check`` every tensor in a tree of dicts and lists."""
        if isinstance(tensors, Tensor):
            self.check(name, tensors)
        elif isinstance(tensors, Mapping):
            for key, value in tensors.items():
                self.check_all(value, f"{name}.{key}".lstrip("."))
        elif isinstance(tensors, list | tuple):
            for number, value in enumerate(tensors):
                self.check_all(value, f"{name}.{number}".lstrip("."))


def read(path: str | Path) -> File:
    """Read a file or a folder; a name of Hugging Face's hub is downloaded if there is no such file.

    Raises:
        FileNotFoundError: No such file, and nothing of that name on the hub.
        Unreadable: Damaged, or a file that wants to run code.
        UnknownFormat: A folder or a file that is no checkpoint.
    """
    found = Path(path).expanduser()
    if not found.exists() and is_hub_name(str(path)):
        found = download(str(path))
    if found.is_dir():
        _check_folder(found)
        return File(found, {}, {}, False)
    if not found.is_file():
        seen_from = "" if found.is_absolute() else f" (from {Path.cwd()})"
        raise FileNotFoundError(f"no such checkpoint: {path}{seen_from}")
    if found.suffix == ".safetensors" or _begins_with_json(found):
        tensors, metadata = read_safetensors(found)
        return File(found, tensors, metadata, False)
    content = read_torch(found)
    if not isinstance(content, dict):
        raise UnknownFormat(f"{found} is not a checkpoint of jepa_lightning: it holds a {type(content).__name__}")
    return File(found, content, {}, True)


def is_hub_name(name: str) -> bool:
    """Whether this may be the name of a folder on Hugging Face's hub, ``owner/name``, and not that of a file."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and Path(name).suffix not in SUFFIXES


def download(name: str) -> Path:
    """The folder of a name on Hugging Face's hub, on this machine.

    Raises:
        FileNotFoundError: If it is not there and cannot be downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"no such folder: {name}; to download it from the hub, pip install 'jepa-lightning[export]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:  # no network, or no such name: its errors are one or the other
        raise FileNotFoundError(
            f"no such folder: {name}, and it cannot be downloaded ({str(error).splitlines()[0]}): without a network, "
            f"copy it from elsewhere (hf download {name} --local-dir FOLDER) and give the folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it holds anything else.

    Raises:
        Unreadable: If it is no JSON, or too large for a description.
    """
    if path.stat().st_size > LARGEST_DESCRIPTION:
        raise Unreadable(f"{path} has {path.stat().st_size:,} bytes, which no description of a network has")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is no valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _check_folder(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / ".metadata").is_file():
        raise UnknownFormat(
            f"{folder} is a checkpoint in several parts (FSDP), whose index is a pickle that can run code. If your own "
            f"training wrote it, resume with --trust {folder}, or make one file of it: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {folder}"
        )
    raise UnknownFormat(
        f"{folder} is a folder, not a checkpoint: give a file in it; Hugging Face and timm have a config.json"
    )


def _begins_with_json(path: Path) -> bool:
    """Whether it looks like safetensors: the length of the header, then the header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, memory-mapped, and the text in its header.

    Raises:
        FileNotFoundError: No such file.
        Unreadable: Not a whole safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Unreadable(f"{path} is not a whole safetensors file ({str(error)[:200]}): copy it again") from error

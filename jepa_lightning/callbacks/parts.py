"""What an unfinished run has made, in small files, so that the next one goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_lightning.evaluation.fingerprint import fingerprint

LOADING = ("batch_size", "num_workers", "reader")
"""Options of a data module that change nothing in what is computed."""


class Rows(NamedTuple):
    """Features of some samples.

    Attributes:
        features: (N, D).
        index: Which samples, (N,).
        labels: (N,) or (N, L).
    """

    features: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    labels: Tensor

    @staticmethod
    def joined(rows: Sequence[Rows]) -> Rows:
        """All of them, one after the other."""
        return Rows(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def in_order(self) -> Rows:
        """Sorted by sample, each once."""
        order = self.index.argsort(stable=True)
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = self.index[order][1:] != self.index[order][:-1]
        return Rows(*(column[order[first]].contiguous() for column in self))


class Parts:
    """A folder of rows.

    Args:
        folder: Where.
        about: What the rows are of; rows of anything else are thrown away.
    """

    def __init__(self, folder: Path, about: str) -> None:
        self.folder, self.about = folder, about

    def read(self) -> Rows | None:
        """What an earlier run left; None if there is nothing of the same encoder and the same samples."""
        if not self.folder.is_dir():
            return None
        name = self.folder / "about.json"
        if not name.is_file() or json.loads(name.read_text()) != {"about": self.about}:
            self.clear()
            return None
        rows = [Rows(**load_file(path)) for path in sorted(self.folder.glob("*.safetensors"))]
        return Rows.joined(rows) if rows else None

    def write(self, rows: Rows) -> None:
        """Add some; a file is there as a whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.folder / "about.json"
        if not name.is_file():
            temporary = self.folder / f"about.{os.getpid()}.part"
            temporary.write_text(json.dumps({"about": self.about}))
            temporary.replace(name)
        temporary = self.folder / f"{time.time_ns()}-{os.getpid()}.part"
        save_file({key: column.contiguous() for key, column in rows._asdict().items()}, temporary)
        temporary.replace(temporary.with_suffix(".safetensors"))

    def clear(self) -> None:
        """Throw everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def digest_of(network: nn.Module, names: Sequence[str], config: str = "") -> str:
    """Tells one computation from another: weights, samples, and the options of model and data.

    Args:
        network: What computes, by its fingerprint.
        names: Of all samples.
        config: The resolved configuration as YAML, if there is one.
    """
    digest = hashlib.blake2b("\n".join([fingerprint(network), *names]).encode(), digest_size=12)
    sections = yaml.safe_load(config) if config else {}
    data = dict((sections.get("data") or {}).get("init_args") or {})
    for option in LOADING:
        data.pop(option, None)
    digest.update(json.dumps([sections.get("model"), data], sort_keys=True, default=str).encode())
    return digest.hexdigest()

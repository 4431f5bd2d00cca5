"""Our safetensors format: an encoder, its description and its preprocessing in one file.

The tensors have the names of our modules; those of a predictor begin with ``predictor.``. The header holds, under the
key ``jepa_lightning``, a JSON object:

    {"version": 1, "branch": "target" or "context",
     "encoder": {"class_path": ..., "init_args": {...}}, "predictor": the same or null,
     "preprocessing": {"size": [height, width], "mean": [...], "std": [...], "shorter_side": pixels or null}}

`jepa export --to safetensors` also writes this object as ``config.json``, to be read by people. A file is only data:
a class of a package that the user did not name is refused.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from jepa_lightning.models import Encoder, Predictor
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights.base import FREE, Hints, OneEncoder, part_of
from jepa_lightning.weights.description import encoder_builder, predictor_builder
from jepa_lightning.weights.file import File, read
from jepa_lightning.weights.networks import Branch, Networks, filled, outlined
from jepa_lightning.weights.policy import UnknownFormat, Unreadable

KEY = "jepa_lightning"
BRANCH = "jepa_lightning_branch"
"""In the header of files in other formats, which cannot say which of the two encoders they hold."""
CHECKSUM = "jepa_lightning_crc32"
"""In the header: CRC-32 of the tensors, in the order of their names."""
VERSION = 1


class Safetensors(OneEncoder):
    """What `jepa export --to safetensors` wrote: the file, or the folder with its ``model.safetensors``."""

    format = "safetensors file of jepa_lightning"

    def __init__(self, file: File) -> None:
        super().__init__(read(file.path / "model.safetensors") if file.path.is_dir() else file)
        said = self.file.metadata.get(CHECKSUM)
        if said is not None and said != checksum(self.file.content):
            raise Unreadable(f"{self.path} is damaged: the checksum of its tensors is wrong: copy the file again")

    @classmethod
    def claims(cls, file: File) -> bool:
        """Whether the header, or the folder, has our description."""
        return KEY in file.metadata or (file.path.is_dir() and {"encoder", "branch"} <= set(file.config))

    @cached_property
    def about(self) -> dict[str, Any]:
        """The description in the header.

        Raises:
            Unreadable: If it is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(self.file.metadata[KEY])
            version, size = found["version"], found["preprocessing"]["size"]
            complete = {"encoder", "branch"} <= set(found) and len(size) == 2
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise Unreadable(
                f"{self.path} has no description of a network under {KEY!r} in its header: was it written by "
                "`jepa export --to safetensors`?"
            ) from error
        if version != VERSION or not complete:
            raise UnknownFormat(
                f"{self.path} is of version {version} of this format, this is {VERSION}: pip install -U jepa-lightning"
            )
        return found

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        predictor = part_of(self.file.content, "predictor")
        encoder = {name: t for name, t in self.file.content.items() if not name.startswith("predictor.")}
        return encoder, predictor

    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        encoding, predicting = self._parts()
        encoder = filled(self.file, "encoder", encoder_builder(self.path, self.about["encoder"], encoding), encoding)
        read_too = None
        if self.about.get("predictor"):
            build = predictor_builder(self.path, self.about["predictor"], encoder, predicting, Predictor)
            read_too = filled(self.file, "predictor", build, predicting)
        said = self.about["preprocessing"]
        wanted = Preprocessing(
            (int(said["size"][0]), int(said["size"][1])), mean=tuple(said["mean"]), std=tuple(said["std"])
        )
        held = cast(Branch, self.about["branch"])
        return Networks(encoder, held, wanted.with_shorter_side(said["shorter_side"]), read_too)

    @property
    def licence(self) -> str:
        """Whoever trained it decides."""
        return f"{FREE}: say it here."

    def outline(self, hints: Hints | None = None) -> Encoder | None:
        """The encoder without its weights."""
        encoding, _ = self._parts()
        return outlined(self.path, encoder_builder(self.path, self.about["encoder"], encoding))


def checksum(state: Mapping[str, Tensor]) -> str:
    """CRC-32 of tensors in the order of their names, hexadecimal."""
    value = 0
    for name in sorted(state):
        values = state[name].contiguous().flatten().view(torch.uint8).numpy()
        value = zlib.crc32(values.data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"

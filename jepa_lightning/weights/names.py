"""Key maps between our tensor names and those of other libraries, for both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from jepa_lightning.weights.policy import DoesNotFit

Value = TypeVar("Value")

Table = tuple[tuple[str, tuple[str, ...]], ...]
"""(beginning of our names, beginnings of theirs): with several of theirs, ours is their concatenation along rows.

A ``*`` stands for the number of a block. The end of a name (``weight``, ``bias``) is the same on both sides.
"""


def to_theirs(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Our tensors under their names.

    Raises:
        KeyError: If the table does not have one: the caller has to know what can be expressed.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        targets, number, end = _find(name, [(ours, names) for ours, names in table])
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            theirs[target.replace("*", number) + end] = part.contiguous()
    return theirs


def to_ours(path: Path, state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Their tensors under our names.

    Args:
        path: Where they come from, for messages.
        state: Their tensors.
        table: Names.

    Raises:
        DoesNotFit: If there is a name that the table does not have, or only a part of what is one tensor here.
    """
    patterns = [(name, (ours, part)) for ours, names in table for part, name in enumerate(names)]
    counts = {ours: len(names) for ours, names in table}
    parts: dict[str, dict[int, Tensor]] = {}
    wanted: dict[str, int] = {}
    for name, tensor in state.items():
        try:
            (ours, part), number, end = _find(name, patterns)
        except KeyError as error:
            raise DoesNotFit(f"{path}: unexpected tensor {name}: this format does not have it") from error
        key = ours.replace("*", number) + end
        parts.setdefault(key, {})[part] = tensor
        wanted[key] = counts[ours]
    for key, found in parts.items():
        if len(found) < wanted[key]:
            raise DoesNotFit(f"{path}: of {key} only {len(found)} of {wanted[key]} parts are there; is the file whole?")
    return {
        key: found[0] if len(found) == 1 else torch.cat([found[part] for part in sorted(found)])
        for key, found in parts.items()
    }


def without_prefix(path: Path, network: str, state: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries of a network without a prefix that all of their names have.

    Args:
        path: Where they come from, for messages.
        network: Name of the network, for messages.
        state: Its entries.
        prefix: What a wrapper puts before the names.

    Raises:
        DoesNotFit: If only some of the names have the prefix.
    """
    others = [name for name in state if not name.startswith(prefix)]
    if others and len(others) < len(state):
        raise DoesNotFit(
            f"{path}: {len(state) - len(others)} of {len(state)} tensors of {network} have the prefix {prefix}, the "
            f"others, for example {others[0]}, have not: a whole file has it everywhere or nowhere"
        )
    return dict(state) if others else {name.removeprefix(prefix): value for name, value in state.items()}


def _find(name: str, entries: list[tuple[str, Value]]) -> tuple[Value, str, str]:
    """The value of the entry that a name begins with, the number of the block, and the end of the name."""
    for beginning, value in entries:
        match = re.fullmatch(re.escape(beginning).replace(r"\*", r"(?P<number>\d+)") + r"(?P<end>.*)", name)
        if match:
            return value, match.groupdict().get("number") or "", match["end"]
    raise KeyError(name)

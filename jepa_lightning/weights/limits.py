"""Limits of the numbers in a checkpoint: how much data it asks for, how many heads, how far a training had come."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa_lightning.weights.policy import Unreadable

MOST = {
    "batch_size": 16_384,
    "episodes": 20_000,
    "steps": 1_000,
    "size": 1_024,
    "img_size": 8_192,
    "local_size": 8_192,
    "patch_size": 1_024,
}
"""The largest values of options of data; those of the embedded data sets decide how much is written to the cache."""
MOST_OF_ANY = 65_536
"""Of the other whole numbers in a data section, but the seed."""
MOST_COUNTED = 1_024
"""Of options that count parts of one sample: ``num_frames``, ``num_targets``."""
LEAST_CROP = 0.1
"""Of ``crop_pct``: a picture is resized to the size of the inputs over this number."""
MOST_EPISODE_STEPS = 2_000_000
"""Steps of all simulated episodes: about 25 GB."""
GRID = ("lr", "weight_decay", "features", "batch_norm")
"""Options of probes: there is a head for each combination of their entries."""
MOST_HEADS = 1_000
"""Combinations."""
MOST_STEPS = 10**12
"""Of counters of a training."""


def check_data(path: Path, data: Any) -> None:
    """Check that the ``data`` section of a configuration asks for no more than a training could use.

    Raises:
        Unreadable: If a number is too large; no data is made or read then.
    """
    for place, number in numbers(data, "data"):
        name = place.rpartition(".")[2].partition("[")[0]
        counted = name.startswith("num_") and name != "num_workers"
        most = MOST.get(name, MOST_COUNTED if counted else MOST_OF_ANY)
        if name != "seed" and not abs(number) <= most:
            raise Unreadable(
                f"{path}: {place} is {number:.6g}, more than the {most:,} that a checkpoint may ask for: give one that "
                "`jepa fit` wrote"
            )
    for arguments in sections(data):
        crop = as_number(arguments.get("crop_pct"))
        if crop is not None and not LEAST_CROP <= crop <= 1:
            raise Unreadable(f"{path}: data has crop_pct {crop:.6g}, a fraction that must be from {LEAST_CROP} to 1")
        episodes, steps = as_number(arguments.get("episodes")), as_number(arguments.get("steps"))
        if episodes and steps and episodes * steps > MOST_EPISODE_STEPS:
            raise Unreadable(
                f"{path}: data asks for {episodes:,.0f} episodes of {steps:,.0f} steps, more than the "
                f"{MOST_EPISODE_STEPS:,} steps that a checkpoint may ask for: give one that `jepa fit` wrote"
            )


def check_heads(path: Path, model: Mapping[str, Any]) -> None:
    """Check that the grid of a probe has no more heads than a probe can have.

    Raises:
        Unreadable: If it has.
    """
    arguments = model.get("init_args")
    lists = [arguments.get(name) for name in GRID] if isinstance(arguments, dict) else []
    pairs = math.prod(len(value) for value in lists if isinstance(value, list))
    if pairs > MOST_HEADS:
        raise Unreadable(
            f"{path}: the lists in model (lr, weight_decay) make {pairs:,} heads, more than the {MOST_HEADS:,} of any "
            "probe: give a checkpoint that `jepa fit` wrote"
        )


def check_progress(path: Path, content: Mapping[Any, Any]) -> None:
    """Check the counters of a training that goes on: epoch, steps, loops, schedules and settings of the optimizer.

    Raises:
        Unreadable: If one is no number, negative, not finite or larger than any training is long.
    """
    for name in ("epoch", "global_step"):
        if not _counts(content.get(name)):
            raise Unreadable(_damaged(path, name, content.get(name)))
    if not isinstance(content.get("loops"), dict | None):
        raise Unreadable(_damaged(path, "loops", content["loops"]))
    for place, number in numbers(content.get("loops"), "loops"):
        if not _counts(number):
            raise Unreadable(_damaged(path, place, number))
    schedules, optimizers = content.get("lr_schedulers") or [], content.get("optimizer_states") or []
    if not isinstance(schedules, list) or not isinstance(optimizers, list):
        raise Unreadable(f"{path}: its optimizer_states or lr_schedulers are no lists: copy the file again")
    for place, number in numbers([schedules, optimizers], "optimizer"):
        last = place.rpartition(".")[2]
        if not abs(number) <= MOST_STEPS or (last == "step" and number < 0):
            raise Unreadable(_damaged(path, place, number))


def _damaged(path: Path, name: str, value: Any) -> str:
    shown = f"{value:.6g}" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return (
        f"{path}: {name} is {shown}, which no training counts to: copy the file again, or start a new training from "
        "its networks with --init_from"
    )


def _counts(value: Any) -> bool:
    whole = (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )
    return whole and 0 <= value <= MOST_STEPS


NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf)", re.ASCII | re.IGNORECASE)
"""Text that options of numbers take."""


def as_number(value: Any) -> float | None:
    """A number, also where it is written as text; None for anything else."""
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every number in a tree of dicts and lists, and every tensor of one number, with its place."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from numbers(entry, f"{place}.{str(key)[:80]}")
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            yield from numbers(entry, f"{place}[{number}]")
    elif isinstance(value, Tensor):
        if value.numel() == 1 and value.dtype.is_complex is False:
            yield place, value.item()
    elif (found := as_number(value)) is not None:
        yield place, found


def sections(value: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a description."""
    if isinstance(value, dict):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from sections(entry)

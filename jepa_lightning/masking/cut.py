"""Cuts the masks of a batch to one length: without favouring a place, or as the official samplers do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def cut(members: Bools, random: Random, most: int | None = None) -> Ints:
    """A random subset of each row as large as the smallest row, in raster order: the tokens with the highest scores.

    Args:
        members: Which tokens (batch, N) belong to each sample.
        random: Source of the scores.
        most: Keep no more than that many; None for no limit.

    Returns:
        Token indices (batch, k), ascending in each row.
    """
    batch, tokens = members.shape
    keep = int(members.sum(axis=1).min())
    keep = keep if most is None else min(keep, most)
    score = random.bit_generator.random_raw(-(-batch * tokens // 2)).view(np.uint32)[: batch * tokens]
    score = score.reshape(batch, tokens)
    # The column in the low bits makes scores unique, the highest bit keeps every member above every non-member.
    # In place: on arrays of this size, allocating costs more than computing.
    score &= np.uint32(0xFFFFFFFF << tokens.bit_length() & 0xFFFFFFFF)
    score |= np.arange(tokens, dtype=np.uint32) | np.uint32(1 << 31)
    score *= members
    least = np.partition(score, tokens - keep, axis=1)[:, tokens - keep, None]
    chosen = np.flatnonzero(score >= least).reshape(batch, keep)
    return chosen - tokens * np.arange(batch)[:, None]


def lowest(masks: Sequence[Ints]) -> Ints:
    """Cut every mask to the shortest, keeping its lowest indices: the official cut, which favours the beginning."""
    shortest = min(map(len, masks))
    return np.stack([mask[:shortest] for mask in masks])

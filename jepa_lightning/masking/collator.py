"""Turns a list of samples into a MaskedBatch: stacks them and draws their masks, in the loader's worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Generator, Tensor
from torch.utils.data import default_collate

from jepa_lightning.masking.sampler import MaskSampler
from jepa_lightning.masking.tokens import MaskedBatch, Places, TokenMasks, places_of


class Sample(NamedTuple):
    """One item of a data set.

    Attributes:
        inputs: An image (C, H, W), a clip (C, T, H, W) or several clips (K, C, T, H, W).
        label: Class index, -1 if unknown; a tuple of them if a sample has several labels.
        index: Position in the data set, -1 for a sample that could not be read; None if it is not known.
        epoch: Epoch in which it was drawn.
        step: Number of its batch since the start of training.
        views: Views of it, one tensor (V, C, h, w) or (V, C, T, h, w) for each size; see MaskedBatch.
        turn: Number of this draw of the sample in its epoch, from 0.
    """

    inputs: Any
    label: int | tuple[int, ...] = -1
    index: int | None = None  # type: ignore[assignment]  # hides tuple.index
    epoch: int = 0
    step: int = 0
    views: tuple[Tensor, ...] = ()
    turn: int = 0


def seeded(*key: int | str) -> Generator:
    """A generator whose numbers follow from ``key`` alone, whichever process asks and however often."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class MaskCollator:
    """Collate function of every JEPA loader.

    Masks follow from (seed, epoch, index and turn of the first sample): the same after a resume and with any number of
    workers, different on each rank, because ranks hold different samples, or the same one in another turn.

    Args:
        masks: Draws the masks; None for a batch without masks (``masks == ()``).
        seed: Part of the key of every draw.
    """

    def __init__(self, masks: MaskSampler | None, seed: int = 0) -> None:
        self.masks, self.seed = masks, seed

    def __call__(self, samples: Sequence[Sample] | Sequence[tuple[Tensor, int]]) -> MaskedBatch:
        """Collate Samples or plain (image, label) pairs; without an index masks come from the global generator."""
        first = samples[0]
        inputs = default_collate([sample[0] for sample in samples])
        labels = torch.tensor([sample[1] for sample in samples])
        if not isinstance(first, Sample):
            masks = self._sample(len(samples))
            return MaskedBatch(inputs, masks, labels, places=_places(masks))
        generator, index = None, None
        if first.index is not None:
            index = torch.tensor([cast(Sample, sample).index for sample in samples])
            key = (self.seed, first.epoch, first.index)
            generator = seeded("masks", *key, first.turn) if first.turn else seeded("masks", *key)
        masks = self._sample(len(samples), generator, first.step)
        views = zip(*[cast(Sample, sample).views for sample in samples], strict=True)
        return MaskedBatch(inputs, masks, labels, index, tuple(default_collate(list(v)) for v in views), _places(masks))

    def _sample(self, size: int, generator: Generator | None = None, step: int | None = None) -> tuple[TokenMasks, ...]:
        return () if self.masks is None else self.masks.sample(size, generator, step)


def _places(masks: tuple[TokenMasks, ...]) -> tuple[Places, ...]:
    return tuple(places_of(family) for family in masks)

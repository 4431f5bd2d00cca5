"""Turns a list of samples into a MaskedBatch: stacks them and draws their masks, in the loader's worker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import default_collate

from jepa_lightning.masking.sampler import MaskSampler
from jepa_lightning.masking.tokens import MaskedBatch


class Sample(NamedTuple):
    """One item of a data set.

    Attributes:
        inputs: An image (C, H, W), a clip (C, T, H, W) or several clips (K, C, T, H, W).
        label: Class index, -1 if unknown; a tuple of them if a sample has several labels.
        index: Position in the data set.
        epoch: Epoch in which it was drawn.
        step: Number of its batch since the start of training.
    """

    inputs: Any
    label: int | tuple[int, ...] = -1
    index: int = 0  # type: ignore[assignment]  # hides tuple.index
    epoch: int = 0
    step: int = 0


def seeded(*key: int | str) -> Generator:
    """A generator whose numbers follow from ``key`` alone, whichever process asks and however often."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class MaskCollator:
    """Collate function of every JEPA loader.

    Masks follow from (seed, epoch, index of the first sample): the same after a resume and with any number of workers,
    different on each rank, because ranks hold different samples.

    Args:
        masks: Draws the masks; None for a batch without masks (``masks == ()``).
        seed: Part of the key of every draw.
        collate: Stacks the inputs; PyTorch's default if None.
    """

    def __init__(
        self,
        masks: MaskSampler | None,
        seed: int = 0,
        collate: Callable[[list[Any]], Tensor] | None = None,
    ) -> None:
        self.masks, self.seed, self.collate = masks, seed, collate or default_collate

    def __call__(self, samples: Sequence[Sample] | Sequence[tuple[Tensor, int]]) -> MaskedBatch:
        """Collate Samples, or plain (image, label) pairs, whose masks then come from the global generator."""
        first = samples[0]
        inputs = self.collate([sample[0] for sample in samples])
        labels = torch.tensor([sample[1] for sample in samples])
        if not isinstance(first, Sample):
            return MaskedBatch(inputs, self._sample(len(samples)), labels, torch.arange(len(samples)))
        index = torch.tensor([sample[2] for sample in samples if isinstance(sample, Sample)])
        generator = seeded("masks", self.seed, first.epoch, first.index)
        return MaskedBatch(inputs, self._sample(len(samples), generator, first.step), labels, index)

    def _sample(self, size: int, generator: Generator | None = None, step: int | None = None) -> tuple[Any, ...]:
        return () if self.masks is None else self.masks.sample(size, generator, step)

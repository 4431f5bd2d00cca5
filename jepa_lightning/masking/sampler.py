"""What a mask sampler is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Generator

from jepa_lightning.masking.cut import Random
from jepa_lightning.masking.padded import stacked
from jepa_lightning.masking.tokens import TokenMasks

Grid = tuple[int, int, int]
"""Tokens along time, height and width; time is 1 for images."""
Range = tuple[float, float]
"""Smallest and largest value."""


class MaskSampler(ABC):
    """Draws which tokens are context and which are targets, for a whole batch."""

    @abstractmethod
    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """Masks for a batch, one entry for each family.

        Args:
            batch_size: Number of samples.
            generator: Source of randomness; None for the global one.
            step: Number of the batch since the start of training, for samplers that follow a counter.
        """


class Counter:
    """Seeds of the official samplers: the number of the batch, or of the call if that is not given."""

    def __init__(self) -> None:
        self.value = -1

    def generator(self, step: int | None) -> Generator:
        """A generator seeded with ``step``; with the number of this call, from 0, if that is None."""
        self.value = self.value + 1 if step is None else step
        return torch.Generator().manual_seed(self.value)


class BlockSampler(MaskSampler):
    """A sampler of blocks: with sizes in common for a batch, for each sample alone, or as the official code draws.

    Attributes:
        counter: Seeds of the official sampler; None to draw as we do.
        per_sample: Draw each sample as a batch of one; rows that are short end in -1.
    """

    counter: Counter | None
    per_sample: bool

    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """See MaskSampler; only the official sampler asks for ``step``."""
        if self.counter is not None:
            return self._official(batch_size, generator, self.counter.generator(step))
        # NumPy from here: its operations on small arrays cost a fifth of PyTorch's, and there are some thirty of them.
        random = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, (1,), generator=generator))))
        if not self.per_sample:
            return self._draw(batch_size, random)
        families = zip(*(self._draw(1, random) for _ in range(batch_size)), strict=True)
        return tuple(TokenMasks(stacked([m.context for m in f]), stacked([m.targets for m in f])) for f in families)

    @abstractmethod
    def _draw(self, batch_size: int, random: Random) -> tuple[TokenMasks, ...]:
        """Masks with sizes in common."""

    @abstractmethod
    def _official(self, batch_size: int, generator: Generator | None, sizes: Generator) -> tuple[TokenMasks, ...]:
        """The masks of the official code: sizes from ``sizes``, places from ``generator``."""


def check_ranges(fractions: Mapping[str, Range], ratios: Mapping[str, Range]) -> None:
    """Refuse scales and aspect ratios of blocks that no grid can satisfy.

    Raises:
        ValueError: If one of ``fractions`` is not ascending in (0, 1], or one of ``ratios`` not ascending above 0.
    """
    for name, (low, high) in fractions.items():
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name} must be [smallest, largest] in (0, 1], got {[low, high]}")
    for name, (low, high) in ratios.items():
        if not 0 < low <= high:
            raise ValueError(f"{name} must be [smallest, largest] above 0, got {[low, high]}")


def hw(grid: Grid | tuple[int, int] | int) -> tuple[int, int]:
    """Height and width of an image grid.

    Raises:
        ValueError: If the grid has more than one step in time.
    """
    if isinstance(grid, int):
        return grid, grid
    if len(grid) == 3 and grid[0] != 1:
        raise ValueError(f"2-D masks need a grid with one step in time, got {grid}")
    return grid[-2], grid[-1]

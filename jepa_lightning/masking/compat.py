"""The official I-JEPA mask sampler, number for number, faults included (reference: facebookresearch/ijepa 52c1ae9).

Written from a description of its behaviour. Kept apart so that the default sampler stays readable; reached by
``MultiBlock(compat=True)``. Its faults, all measured: a block is one smaller than the grid at most and never touches
the last row or column; area and aspect ratio come from one random number; every mask is cut to its lowest indices, so
that the bottom of the picture is rarely context.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from jepa_lightning.masking.tokens import TokenMasks

if TYPE_CHECKING:
    from jepa_lightning.masking.multiblock import MultiBlock

PATIENCE = 20
"""Failed placements before one more target may overlap the context."""


class OfficialMultiBlock:
    """Block sizes from a generator seeded with a counter, positions from another source (officially the global one)."""

    def __init__(self, settings: MultiBlock) -> None:
        self.settings = settings
        self.counter = -1

    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """Masks for a batch.

        Args:
            batch_size: Number of samples.
            generator: Where positions are drawn from; None for the global generator, as officially.
            step: Value of the counter; None to count calls, as officially.
        """
        self.counter = self.counter + 1 if step is None else step
        own = torch.Generator().manual_seed(self.counter)
        options = self.settings
        (u,) = torch.rand(1, generator=own).tolist()
        target_size = self._size(options.target_scale, options.target_aspect_ratio, u)
        (u,) = torch.rand(1, generator=own).tolist()
        context_size = self._size(options.context_scale, (1.0, 1.0), u)
        targets, contexts = [], []
        for _ in range(batch_size):
            blocks = [self._place(target_size, generator)[0] for _ in range(options.num_targets)]
            targets.append([block.flatten().nonzero().flatten() for block in blocks])
            hidden = [] if options.allow_overlap else blocks
            contexts.append([self._context(context_size, hidden, generator) for _ in range(options.num_contexts)])
        target_indices = _first(targets)
        context_indices = _first(contexts)
        return tuple(TokenMasks(context_indices[:, family], target_indices) for family in range(options.num_contexts))

    def _size(self, scale: tuple[float, float], ratio: tuple[float, float], u: float) -> tuple[int, int]:
        return self.block_size(scale[0] + u * (scale[1] - scale[0]), ratio[0] + u * (ratio[1] - ratio[0]))

    def block_size(self, scale: float, aspect_ratio: float) -> tuple[int, int]:
        """Height and width of a block: smaller than the grid, area rounded down first."""
        area = int(self.settings.height * self.settings.width * scale)
        height, width = round(math.sqrt(area * aspect_ratio)), round(math.sqrt(area / aspect_ratio))
        return min(height, self.settings.height - 1), min(width, self.settings.width - 1)

    def _place(self, size: tuple[int, int], generator: Generator | None) -> tuple[Tensor, Tensor]:
        """A block at a random place as a (H, W) map of ones, and its complement."""
        top = int(torch.randint(0, self.settings.height - size[0], (1,), generator=generator))
        left = int(torch.randint(0, self.settings.width - size[1], (1,), generator=generator))
        block = torch.zeros(self.settings.height, self.settings.width, dtype=torch.int32)
        block[top : top + size[0], left : left + size[1]] = 1
        return block, 1 - block

    def _context(self, size: tuple[int, int], hidden: list[Tensor], generator: Generator | None) -> Int[Tensor, " k"]:
        """A context block minus the targets; each time that fails often enough, one target less."""
        tries = 0
        while True:
            block, _ = self._place(size, generator)
            for target in hidden[: max(len(hidden) - tries // PATIENCE, 0)]:
                block = block * (1 - target)
            indices = block.flatten().nonzero().flatten()
            if len(indices) > self.settings.min_keep:
                return indices
            tries += 1


def _first(masks: list[list[Tensor]]) -> Int[Tensor, "batch n k"]:
    """Cut every mask to the shortest, keeping its lowest indices."""
    shortest = min(len(mask) for sample in masks for mask in sample)
    return torch.stack([torch.stack([mask[:shortest] for mask in sample]) for sample in masks])

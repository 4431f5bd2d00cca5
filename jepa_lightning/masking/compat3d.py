"""The official V-JEPA and V-JEPA 2 mask sampler, number for number (reference: facebookresearch/vjepa2 c2963a4).

Written from a description of its behaviour. Kept apart so that the default sampler stays readable; reached by
``MultiBlock3D(compat=True)``. Its faults: every mask is cut to its lowest indices, so that the last frames are context
and target less often than the first; all families take their block sizes from the same three random numbers.
Two endless or empty cases are left out: a block has at least one token, and placing one again comes to an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator

from jepa_lightning.masking.blocks import Blocks
from jepa_lightning.masking.cut import Ints
from jepa_lightning.masking.sampler import Grid
from jepa_lightning.masking.tokens import TokenMasks

if TYPE_CHECKING:
    from jepa_lightning.masking.multiblock3d import MultiBlock3D

PATIENCE = 1000
"""Times that the blocks of a sample are placed before giving up; officially there is no end to it."""


class OfficialMultiBlock3D:
    """Block sizes from a generator seeded with a counter, positions from another source (officially the global one)."""

    def __init__(self, settings: MultiBlock3D) -> None:
        self.settings = settings
        self.counter = -1

    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """Masks for a batch, one TokenMasks for each family.

        Args:
            batch_size: Number of samples.
            generator: Where positions are drawn from; None for the global generator, as officially.
            step: Value of the counter; None to count calls, as officially.

        Raises:
            RuntimeError: If the blocks of a sample leave no context wherever they are placed.
        """
        self.counter = self.counter + 1 if step is None else step
        return tuple(self._family(blocks, batch_size, generator) for blocks in self.settings.families)

    def _family(self, blocks: Blocks, batch_size: int, generator: Generator | None) -> TokenMasks:
        own = torch.Generator().manual_seed(self.counter)
        temporal, spatial, aspect = (float(torch.rand(1, generator=own)) for _ in range(3))
        size = blocks.size(self.settings.grid, temporal, spatial, aspect, keep_area=False)
        pairs = [self._place(blocks, size, generator) for _ in range(batch_size)]
        targets, context = _first([hidden for hidden, _ in pairs]), _first([shown for _, shown in pairs])
        context, targets = blocks.arranged(context[:, : blocks.max_keep], targets, int(np.prod(self.settings.grid)))
        return TokenMasks(torch.from_numpy(context), torch.from_numpy(targets).unsqueeze(1))

    def _place(self, blocks: Blocks, size: Grid, generator: Generator | None) -> tuple[Ints, Ints]:
        """The tokens hidden by a sample's blocks and the others, placed again until enough are left."""
        steps, height, width = size
        last = [extent - length + 1 for extent, length in zip(self.settings.grid, size, strict=True)]
        for _ in range(PATIENCE):
            shown = np.ones(self.settings.grid, dtype=bool)
            for _ in range(blocks.num_blocks):
                top, left, start = (int(torch.randint(0, last[axis], (1,), generator=generator)) for axis in (1, 2, 0))
                shown[start : start + steps, top : top + height, left : left + width] = False
            shown[blocks.steps_kept(self.settings.grid) :] = False
            if np.count_nonzero(shown) >= self.settings.min_keep:
                return np.flatnonzero(~shown), np.flatnonzero(shown)
        raise RuntimeError(
            f"{blocks.num_blocks} blocks of {steps}x{height}x{width} tokens left fewer than {self.settings.min_keep} "
            f"tokens of a grid {self.settings.grid} as context, {PATIENCE} times in a row: use fewer or smaller blocks"
        )


def _first(masks: list[Ints]) -> Ints:
    """Cut every mask to the shortest, keeping its lowest indices."""
    shortest = min(map(len, masks))
    return np.stack([mask[:shortest] for mask in masks])

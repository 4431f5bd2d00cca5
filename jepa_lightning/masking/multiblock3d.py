"""Multi-block masking of clips (V-JEPA section 3.2): targets are the union of blocks, the rest is context."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator

from jepa_lightning.masking.blocks import Blocks, thw
from jepa_lightning.masking.cut import Bools, Ints, Random, cut, lowest
from jepa_lightning.masking.sampler import BlockSampler, Counter, Grid
from jepa_lightning.masking.tokens import TokenMasks

ROUNDS = 20
"""Times that the blocks of a failing sample are placed again before some of them are left out."""
PATIENCE = 1000
"""Times that the official sampler places the blocks of a sample before an error; the official code has no limit."""

SHORT = Blocks(num_blocks=8, spatial_scale=(0.15, 0.15))
LONG = Blocks(num_blocks=2, spatial_scale=(0.7, 0.7))


class MultiBlock3D(BlockSampler):
    """Samples blocks for a whole batch at once, for one or more families of masks.

    In each family duration, area and aspect ratio of the blocks are drawn once for a batch, their places for each
    sample. As masks must be equally long in a batch, contexts and targets are cut to the shortest by a random choice,
    which takes from late frames no more than from early ones. The official sampler cuts the last tokens, draws the
    sizes of all families from the same numbers, and clips blocks that are too long for a flat grid: see ``compat``.

    Args:
        grid: Tokens along time, height and width; or height and width, or the side, of an image. A configuration
            leaves it out: the data module takes it from the model.
        families: The kinds of blocks; each makes one TokenMasks. None for V-JEPA's short and long ones.
        min_keep: Least number of tokens outside the blocks: in the context, or in the targets with ``inv_block``.
        candidates: Samples drawn for each one used. They are sorted by the number of their hidden tokens, and one run
            of neighbours, each equally likely, becomes the batch: less is cut, while the masks of a sample, before
            the cut, keep their distribution. Of V-JEPA's masks at batch 24, 8 candidates lose 4 % (short) and 3 %
            (long) of the tokens, 1 loses 28 % and 23 %; contexts grow by half (short) and to three times (long).
        compat: Reproduce the official sampler bit for bit, which favours early frames.
        per_sample: Draw the masks of each sample as those of a batch of one: sizes too are its own, and nothing is cut.
            Contexts and targets of a batch then differ in length; short ones end in -1, for which networks compute
            nothing.

    Raises:
        ValueError: If blocks of a family can hide too much of this grid wherever they are placed.
    """

    def __init__(
        self,
        grid: Grid | tuple[int, int] | int,
        families: Sequence[Blocks] | None = None,
        min_keep: int = 1,
        candidates: int = 1,
        compat: bool = False,
        per_sample: bool = False,
    ) -> None:
        self.grid, self.families = thw(grid), (SHORT, LONG) if families is None else tuple(families)
        self.min_keep, self.candidates, self.per_sample = min_keep, candidates, per_sample
        if not self.families:
            raise ValueError("families is empty: give at least one Blocks, or null for V-JEPA's two")
        if min_keep < 1 or candidates < 1:
            raise ValueError(f"min_keep and candidates must be at least 1, got {min_keep} and {candidates}")
        if compat and candidates > 1:
            raise ValueError(f"candidates is {candidates}, the official sampler knows only 1: set compat to false")
        if per_sample and (compat or candidates > 1):
            raise ValueError(
                f"per_sample cuts nothing, which compat ({compat}) and candidates ({candidates}) are about: "
                "set compat to false and candidates to 1, or per_sample to false"
            )
        self.counter = Counter() if compat else None
        for blocks in self.families:
            self._check_geometry(blocks)

    def _draw(self, batch_size: int, random: Random) -> tuple[TokenMasks, ...]:
        """Masks with sizes in common."""
        return tuple(self._family(blocks, batch_size, random) for blocks in self.families)

    def _family(self, blocks: Blocks, batch_size: int, random: Random) -> TokenMasks:
        size = blocks.size(self.grid, random.random(), random.random(), random.random())
        hidden = self._hidden(blocks, size, batch_size * self.candidates, random)
        if self.candidates > 1:
            hidden = _neighbours(hidden, batch_size, random)
        context, targets = cut(~hidden, random, blocks.max_keep), cut(hidden, random)
        context, targets = blocks.arranged(context, targets, hidden.shape[1])
        return TokenMasks(torch.from_numpy(context), torch.from_numpy(targets).unsqueeze(1))

    def _hidden(self, blocks: Blocks, size: Grid, count: int, random: Random) -> Bools:
        """Which tokens (count, N) are not shown; a sample left with too few places its blocks again."""
        steps = blocks.steps_kept(self.grid)
        corners = self._corners(size, (count, blocks.num_blocks), random)
        hidden = self._cover(corners, size, steps)
        for _ in range(ROUNDS):
            failing = self._failing(hidden)
            if not len(failing):
                return hidden
            corners[:, failing] = self._corners(size, (len(failing), blocks.num_blocks), random)
            hidden[failing] = self._cover(corners[:, failing], size, steps)
        # Where nothing else helped, move blocks to the end, where they hide least, and leave out as few as possible.
        for num_blocks in range(blocks.num_blocks, 0, -1):
            failing = self._failing(hidden)
            corners[0, failing] = self.grid[0] - size[0]
            hidden[failing] = self._cover(corners[:, failing, :num_blocks], size, steps)
        return hidden

    def _failing(self, hidden: Bools) -> Ints:
        return np.flatnonzero(hidden.shape[1] - hidden.sum(axis=1) < self.min_keep)

    def _corners(self, size: Grid, shape: tuple[int, int], random: Random) -> Ints:
        """Step, row and column (3, count, blocks) of the first token of blocks, each place equally likely."""
        highest = np.array(self.grid) - np.array(size)
        return random.integers(0, highest.reshape(3, 1, 1), (3, *shape), endpoint=True)

    def _cover(self, corners: Ints, size: Grid, steps: int) -> Bools:
        """Which tokens (count, N) the blocks of each sample cover, together with all from time step ``steps`` on."""
        inside = []
        for first, length, extent in zip(corners, size, self.grid, strict=True):
            offset = np.arange(extent) - first[..., None]
            inside.append((offset >= 0) & (offset < length))
        times, rows, columns = inside
        frames = rows[..., :, None] & columns[..., None, :]
        covered = np.zeros((len(frames), *self.grid), dtype=bool)
        if size[0] == self.grid[0]:  # the usual case: all frames are the same, so that one look is enough
            covered |= frames.any(axis=1)[:, None]
        else:
            for block in range(frames.shape[1]):
                covered |= times[:, block, :, None, None] & frames[:, block, None]
        covered[:, steps:] = True
        return covered.reshape(len(frames), math.prod(self.grid))

    def _official(self, batch_size: int, generator: Generator | None, sizes: Generator) -> tuple[TokenMasks, ...]:
        """The masks of the official code, written from a description of it (facebookresearch/vjepa2 c2963a4).

        Block sizes of all families come from the same three numbers of ``sizes``; places from ``generator``, officially
        the global one. Every mask is cut to its lowest indices. Unlike officially, a block has at least one token.
        """
        temporal, spatial, aspect = (float(torch.rand(1, generator=sizes)) for _ in range(3))
        families = []
        for blocks in self.families:
            size = blocks.size(self.grid, temporal, spatial, aspect, keep_area=False)
            hidden = [self._official_hidden(blocks, size, generator) for _ in range(batch_size)]
            context, targets = (lowest([np.flatnonzero(tokens == part) for tokens in hidden]) for part in (False, True))
            context, targets = blocks.arranged(context[:, : blocks.max_keep], targets, math.prod(self.grid))
            families.append(TokenMasks(torch.from_numpy(context), torch.from_numpy(targets).unsqueeze(1)))
        return tuple(families)

    def _official_hidden(self, blocks: Blocks, size: Grid, generator: Generator | None) -> Bools:
        """Which tokens (T', H', W') of a sample are not shown; its blocks are placed until enough others are left.

        Raises:
            RuntimeError: If that takes too long.
        """
        steps, height, width = size
        last = [extent - length + 1 for extent, length in zip(self.grid, size, strict=True)]
        for _ in range(PATIENCE):
            hidden = np.zeros(self.grid, dtype=bool)
            for _ in range(blocks.num_blocks):
                top, left, start = (int(torch.randint(0, last[axis], (1,), generator=generator)) for axis in (1, 2, 0))
                hidden[start : start + steps, top : top + height, left : left + width] = True
            hidden[blocks.steps_kept(self.grid) :] = True
            if hidden.size - np.count_nonzero(hidden) >= self.min_keep:
                return hidden
        raise RuntimeError(
            f"{blocks.num_blocks} blocks of {steps}x{height}x{width} tokens left fewer than {self.min_keep} tokens of "
            f"a grid {self.grid} as context, {PATIENCE} times in a row: use fewer or smaller blocks"
        )

    def _check_geometry(self, blocks: Blocks) -> None:
        """One block of the largest size, as late as possible, must leave enough of the steps that can be context."""
        keep_area = self.counter is None  # the official blocks are clipped
        sizes = [blocks.size(self.grid, 1.0, 1.0, i / 1000, keep_area) for i in range(1001)]
        steps, height, width = max(sizes, key=math.prod)
        kept = blocks.steps_kept(self.grid)
        covered = max(0, kept - (self.grid[0] - steps)) * height * width
        left = kept * self.grid[1] * self.grid[2] - covered
        if left < self.min_keep:
            raise ValueError(
                f"blocks can be as large as {steps}x{height}x{width} tokens on a "
                f"{self.grid[0]}x{self.grid[1]}x{self.grid[2]} grid, of which {kept} time steps can be context; one "
                f"leaves {left} tokens, fewer than the {self.min_keep} that min_keep asks for: lower min_keep, "
                f"spatial_scale {list(blocks.spatial_scale)} or temporal_scale {list(blocks.temporal_scale)}"
            )


def _neighbours(hidden: Bools, batch_size: int, random: Random) -> Bools:
    """``batch_size`` rows that are neighbours in the order of their counts, shuffled.

    Each row belongs to one of the runs and each run is equally likely, so every row is taken with the same probability.
    """
    order = np.argsort(hidden.sum(axis=1), kind="stable")
    first = batch_size * int(random.integers(len(hidden) // batch_size))
    return hidden[random.permutation(order[first : first + batch_size])]

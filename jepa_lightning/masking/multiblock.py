"""Multi-block masking (I-JEPA section 3): several target blocks, one large context block minus the targets."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import torch
from torch import Generator

from jepa_lightning.masking.blocks import between
from jepa_lightning.masking.cut import Bools, Ints, Random, cut, lowest
from jepa_lightning.masking.sampler import BlockSampler, Counter, Grid, Range, check_ranges, hw
from jepa_lightning.masking.tokens import TokenMasks

ROUNDS = 20
"""Times that a failing sample is placed again before its targets may overlap the context (officially: one of them)."""


class MultiBlock(BlockSampler):
    """Samples context and target blocks for a whole batch at once.

    Every row and column can be context and target; size and aspect ratio of a block are drawn separately, once for a
    batch (so that blocks have one size and nothing of a target is cut), their places for each sample; contexts are cut
    to the smallest of the batch at random. The official sampler differs in each of these: see ``compat``.

    Args:
        grid: Tokens along height and width, or (time, height, width) with time 1. A configuration leaves it out: the
            data module takes it from the model.
        context_scale: Smallest and largest area of the (square) context block over the area of the grid.
        target_scale: The same for a target block.
        target_aspect_ratio: Smallest and largest height over width of a target block.
        num_contexts: Context blocks for each sample; each makes one family of masks with the same targets.
        num_targets: Target blocks for each sample, M.
        min_keep: Least number of tokens in a context and in a target block.
        allow_overlap: Leave the targets in the context.
        compat: Reproduce the official sampler bit for bit, with its faults: the last row and column are never used,
            size and aspect ratio share one random number, contexts lose their bottom rows.
        per_sample: Draw the masks of each sample as those of a batch of one: sizes too are its own, and nothing is cut.
            Contexts and targets of a batch then differ in length; short ones end in -1, for which networks compute
            nothing. Contexts are longer (14x14 patches, batch 64: 90 tokens in place of 62), so steps take longer.

    Raises:
        ValueError: If a range is not ascending, or a context or target cannot have ``min_keep`` tokens on this grid.
    """

    def __init__(
        self,
        grid: Grid | tuple[int, int] | int,
        context_scale: Range = (0.85, 1.0),
        target_scale: Range = (0.15, 0.2),
        target_aspect_ratio: Range = (0.75, 1.5),
        num_contexts: int = 1,
        num_targets: int = 4,
        min_keep: int = 10,
        allow_overlap: bool = False,
        compat: bool = False,
        per_sample: bool = False,
    ) -> None:
        self.height, self.width = hw(grid)
        self.context_scale, self.target_scale = context_scale, target_scale
        self.target_aspect_ratio = target_aspect_ratio
        self.num_contexts, self.num_targets = num_contexts, num_targets
        self.min_keep, self.allow_overlap, self.per_sample = min_keep, allow_overlap, per_sample
        if num_contexts < 1 or num_targets < 1:
            raise ValueError(f"num_contexts and num_targets must be at least 1, got {num_contexts} and {num_targets}")
        if min_keep < 1:
            raise ValueError(f"min_keep must be at least 1, got {min_keep}: an empty context can predict nothing")
        if per_sample and compat:
            raise ValueError(
                "the official sampler (compat) cuts the masks of a batch: set per_sample or compat to false"
            )
        scales = {"context_scale": context_scale, "target_scale": target_scale}
        check_ranges(scales, {"target_aspect_ratio": target_aspect_ratio})
        self.counter = Counter() if compat else None
        self._check_geometry()

    def _draw(self, batch_size: int, random: Random) -> tuple[TokenMasks, ...]:
        """Masks with sizes in common."""
        size = self._block_size(self.target_scale, self.target_aspect_ratio, random)
        targets = self._place(size, (batch_size, self.num_targets), random)
        contexts = [self._context(targets, size, random) for _ in range(self.num_contexts)]
        # A context that found no place redraws the targets, so they are read only after the last one.
        indices = torch.from_numpy(self._indices(targets, size))
        return tuple(TokenMasks(torch.from_numpy(cut(context, random)), indices) for context in contexts)

    def _block_size(self, scale: Range, aspect_ratio: Range, random: Random) -> tuple[int, int]:
        return self.block_size(between(scale, random.random()), between(aspect_ratio, random.random()))

    def block_size(self, scale: float, aspect_ratio: float) -> tuple[int, int]:
        """Height and width in tokens of a block of this area fraction and height over width."""
        compat = self.counter is not None
        area = int(self.height * self.width * scale) if compat else scale * self.height * self.width
        height, width = math.sqrt(area * aspect_ratio), math.sqrt(area / aspect_ratio)
        if compat:
            return min(round(height), self.height - 1), min(round(width), self.width - 1)
        if height > self.height:  # too long for a flat grid: keep the area, not the aspect ratio
            height, width = self.height, area / self.height
        elif width > self.width:
            height, width = area / self.width, self.width
        return min(max(1, round(height)), self.height), min(max(1, round(width)), self.width)

    def _place(self, size: tuple[int, int], shape: tuple[int, ...], random: Random) -> Ints:
        """Rows and columns (2, *shape) of the first token of blocks, each place equally likely."""
        highest = np.array([self.height - size[0], self.width - size[1]]).reshape(2, *[1] * len(shape))
        return random.integers(0, highest, (2, *shape), endpoint=True)

    def _indices(self, corner: Ints, size: tuple[int, int]) -> Ints:
        """The token indices (*shape, k) of blocks in raster order."""
        offsets = np.arange(size[0])[:, None] * self.width + np.arange(size[1])
        return (corner[0] * self.width + corner[1])[..., None] + offsets.ravel()

    def _inside(self, corner: Ints, size: tuple[int, int]) -> Bools:
        """Which tokens (batch, N) of the grid one block of each sample covers."""
        row, column = np.arange(self.height) - corner[0][:, None], np.arange(self.width) - corner[1][:, None]
        in_rows, in_columns = (row >= 0) & (row < size[0]), (column >= 0) & (column < size[1])
        return (in_rows[:, :, None] & in_columns[:, None, :]).reshape(corner.shape[1], -1)

    def _without(self, context: Bools, targets: Ints, size: tuple[int, int]) -> Bools:
        """Contexts (batch, N) less the target blocks (2, batch, M) of each sample."""
        left = context.copy()
        first = np.arange(len(left)) * left.shape[1]
        left.reshape(-1)[(self._indices(targets, size) + first[:, None, None]).reshape(-1)] = False
        return left

    def _context(self, targets: Ints, target_size: tuple[int, int], random: Random) -> Bools:
        """Context block minus targets; a sample left with too few tokens draws its places again."""
        batch_size = targets.shape[1]
        size = self._block_size(self.context_scale, (1.0, 1.0), random)
        context = self._inside(self._place(size, (batch_size,), random), size)
        if self.allow_overlap:
            return context
        kept = self._without(context, targets, target_size)
        for _ in range(ROUNDS):
            failing = np.flatnonzero(kept.sum(axis=1) < self.min_keep)
            if not len(failing):
                return kept
            context[failing] = self._inside(self._place(size, (len(failing),), random), size)
            if self.num_contexts == 1:  # with more, moving the targets would spoil the contexts already found
                targets[:, failing] = self._place(target_size, (len(failing), self.num_targets), random)
            kept[failing] = self._without(context[failing], targets[:, failing], target_size)
        # Where nothing else helped, leave the last targets in the context, as few of them as possible.
        for spared in range(self.num_targets - 1, -1, -1):
            failing = np.flatnonzero(kept.sum(axis=1) < self.min_keep)
            kept[failing] = self._without(context[failing], targets[:, failing, :spared], target_size)
        return kept

    def _official(self, batch_size: int, generator: Generator | None, sizes: Generator) -> tuple[TokenMasks, ...]:
        """The masks of the official code, written from a description of it (facebookresearch/ijepa 52c1ae9).

        Block sizes come from ``sizes``, area and aspect ratio from one number; places from ``generator``, officially
        the global one. Every mask is cut to its lowest indices.
        """
        target, context = (float(torch.rand(1, generator=sizes)) for _ in range(2))
        target_size = self.block_size(between(self.target_scale, target), between(self.target_aspect_ratio, target))
        context_size = self.block_size(between(self.context_scale, context), 1.0)
        targets: list[Ints] = []
        contexts: list[Ints] = []
        for _ in range(batch_size):
            blocks = [self._official_block(target_size, generator) for _ in range(self.num_targets)]
            targets += map(np.flatnonzero, blocks)
            hidden = [] if self.allow_overlap else blocks
            contexts += [self._official_context(context_size, hidden, generator) for _ in range(self.num_contexts)]
        indices = torch.from_numpy(lowest(targets)).view(batch_size, self.num_targets, -1)
        shown = torch.from_numpy(lowest(contexts)).view(batch_size, self.num_contexts, -1)
        return tuple(TokenMasks(shown[:, family], indices) for family in range(self.num_contexts))

    def _official_block(self, size: tuple[int, int], generator: Generator | None) -> Bools:
        """Which tokens (H, W) a block covers; it never touches the last row and column."""
        sides = zip((self.height, self.width), size, strict=True)
        top, left = (int(torch.randint(0, side - length, (1,), generator=generator)) for side, length in sides)
        block = np.zeros((self.height, self.width), dtype=bool)
        block[top : top + size[0], left : left + size[1]] = True
        return block

    def _official_context(self, size: tuple[int, int], hidden: list[Bools], generator: Generator | None) -> Ints:
        """A context block minus the targets; each time that fails often enough, minus one target less."""
        for tries in count():
            block = self._official_block(size, generator)
            for target in hidden[: max(len(hidden) - tries // ROUNDS, 0)]:
                block &= ~target
            if np.count_nonzero(block) > self.min_keep:
                break
        return np.flatnonzero(block)

    def _check_geometry(self) -> None:
        where = f"on a {self.height}x{self.width} grid"
        least = self.min_keep + (self.counter is not None)  # the official test is a strict one
        (height, width), largest = self._extreme_targets()
        if height * width < least:
            raise ValueError(
                f"target blocks can be as small as {height}x{width} = {height * width} tokens {where}, fewer than the "
                f"{least} that min_keep {self.min_keep} asks for: lower min_keep to "
                f"{height * width - least + self.min_keep} or raise target_scale {list(self.target_scale)}"
            )
        left = self.height * self.width - math.prod(largest)
        if left < least and not self.allow_overlap:  # such a target would be left in the context, and predict itself
            raise ValueError(
                f"a target block can be as large as {largest[0]}x{largest[1]} {where}, which leaves {left} tokens, "
                f"fewer than the {least} that min_keep {self.min_keep} asks for: "
                f"lower target_scale {list(self.target_scale)}"
            )
        hidden = 0 if self.allow_overlap else height * width
        height, width = self.block_size(self.context_scale[0], 1.0)
        if height * width - hidden < least:
            raise ValueError(
                f"the context block can be as small as {height}x{width} = {height * width} tokens {where}; without a "
                f"target of {hidden} tokens that is fewer than the {least} that min_keep {self.min_keep} asks for: "
                f"raise context_scale {list(self.context_scale)} or lower target_scale {list(self.target_scale)}"
            )

    def _extreme_targets(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and the largest target block; sides grow with the area, so only the ratio has to be searched."""
        steps = [i / 1000 for i in range(1001)]
        ratios = [between(self.target_aspect_ratio, u) for u in steps]
        if self.counter is not None:  # one random number sets both
            scales = [between(self.target_scale, u) for u in steps]
            sizes = [self.block_size(*pair) for pair in zip(scales, ratios, strict=True)]
        else:
            sizes = [self.block_size(scale, ratio) for scale in self.target_scale for ratio in ratios]
        return min(sizes, key=math.prod), max(sizes, key=math.prod)

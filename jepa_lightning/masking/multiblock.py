"""Multi-block masking (I-JEPA section 3): several target blocks, one large context block minus the targets."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from jepa_lightning.masking.compat import OfficialMultiBlock
from jepa_lightning.masking.sampler import Grid, MaskSampler, Range, hw
from jepa_lightning.masking.tokens import TokenMasks

ROUNDS = 20
"""Times that the positions of a failing sample are drawn again before its targets may overlap the context."""


class MultiBlock(MaskSampler):
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

    Raises:
        ValueError: If no context or target can have ``min_keep`` tokens on this grid.
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
    ) -> None:
        self.height, self.width = hw(grid)
        self.context_scale, self.target_scale = context_scale, target_scale
        self.target_aspect_ratio = target_aspect_ratio
        self.num_contexts, self.num_targets = num_contexts, num_targets
        self.min_keep, self.allow_overlap = min_keep, allow_overlap
        if num_contexts < 1 or num_targets < 1:
            raise ValueError(f"num_contexts and num_targets must be at least 1, got {num_contexts} and {num_targets}")
        if min_keep < 1:
            raise ValueError(f"min_keep must be at least 1, got {min_keep}: an empty context can predict nothing")
        self.official = OfficialMultiBlock(self) if compat else None
        self._check_geometry()

    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """Masks for a batch: one TokenMasks for each context block, all with the same targets.

        Args:
            batch_size: Number of samples.
            generator: Source of randomness; None for the global one.
            step: Number of the batch since the start of training; only the official sampler asks for it.
        """
        if self.official is not None:
            return self.official.sample(batch_size, generator, step)
        size = self._block_size(self.target_scale, self.target_aspect_ratio, generator)
        targets = self._place(size, (batch_size, self.num_targets), generator)
        contexts = [self._context(targets, size, generator) for _ in range(self.num_contexts)]
        # A context that found no place redraws the targets, so they are read only after the last one.
        indices = self._indices(targets, size)
        return tuple(TokenMasks(self._cut(context, generator), indices) for context in contexts)

    def _block_size(self, scale: Range, aspect_ratio: Range, generator: Generator | None) -> tuple[int, int]:
        u, v = torch.rand(2, generator=generator).tolist()
        return self.block_size(_between(scale, u), _between(aspect_ratio, v))

    def block_size(self, scale: float, aspect_ratio: float) -> tuple[int, int]:
        """Height and width in tokens of a block of this area fraction and height over width."""
        area = scale * self.height * self.width
        height, width = math.sqrt(area * aspect_ratio), math.sqrt(area / aspect_ratio)
        if height > self.height:  # too long for a flat grid: keep the area, not the aspect ratio
            height, width = self.height, area / self.height
        elif width > self.width:
            height, width = area / self.width, self.width
        return min(max(1, round(height)), self.height), min(max(1, round(width)), self.width)

    def _place(
        self, size: tuple[int, int], shape: tuple[int, ...], generator: Generator | None
    ) -> Int[Tensor, "*shape 2"]:
        """Top and left corners, each place equally likely."""
        top = torch.randint(self.height - size[0] + 1, shape, generator=generator)
        left = torch.randint(self.width - size[1] + 1, shape, generator=generator)
        return torch.stack([top, left], dim=-1)

    def _inside(self, corner: Int[Tensor, "*shape 2"], size: tuple[int, int]) -> Bool[Tensor, "*shape tokens"]:
        """Which tokens of the grid a block covers."""
        top, left = corner[..., :1], corner[..., 1:]
        rows, columns = torch.arange(self.height), torch.arange(self.width)
        in_rows = (rows >= top) & (rows < top + size[0])
        in_columns = (columns >= left) & (columns < left + size[1])
        return (in_rows[..., :, None] & in_columns[..., None, :]).flatten(-2)

    def _indices(self, corner: Int[Tensor, "*shape 2"], size: tuple[int, int]) -> Int[Tensor, "*shape k"]:
        """The token indices of a block in raster order."""
        offsets = torch.arange(size[0])[:, None] * self.width + torch.arange(size[1])
        return corner[..., :1] * self.width + corner[..., 1:] + offsets.flatten()

    def _context(
        self, targets: Int[Tensor, "batch m 2"], target_size: tuple[int, int], generator: Generator | None
    ) -> Bool[Tensor, "batch tokens"]:
        """Context block minus targets; a sample left with too few tokens draws its places again."""
        size = self._block_size(self.context_scale, (1.0, 1.0), generator)
        context = self._inside(self._place(size, (len(targets),), generator), size)
        if self.allow_overlap:
            return context
        kept = context & ~self._inside(targets, target_size).any(dim=1)
        for _ in range(ROUNDS):
            failing = (kept.sum(dim=1) < self.min_keep).nonzero().flatten()
            if not len(failing):
                return kept
            context[failing] = self._inside(self._place(size, (len(failing),), generator), size)
            if self.num_contexts == 1:  # with more, moving the targets would spoil the contexts already found
                targets[failing] = self._place(target_size, (len(failing), self.num_targets), generator)
            kept[failing] = context[failing] & ~self._inside(targets[failing], target_size).any(dim=1)
        return self._allow_some_overlap(kept, context, targets, target_size)

    def _allow_some_overlap(
        self,
        kept: Bool[Tensor, "batch tokens"],
        context: Bool[Tensor, "batch tokens"],
        targets: Int[Tensor, "batch m 2"],
        target_size: tuple[int, int],
    ) -> Bool[Tensor, "batch tokens"]:
        """Where nothing else helped, leave the last targets in the context, as few of them as possible."""
        blocks = self._inside(targets, target_size)
        for spared in range(self.num_targets - 1, -1, -1):
            failing = kept.sum(dim=1) < self.min_keep
            kept[failing] = context[failing] & ~blocks[failing, :spared].any(dim=1)
        return kept

    def _cut(self, context: Bool[Tensor, "batch tokens"], generator: Generator | None) -> Int[Tensor, "batch k"]:
        """A random subset of each context as large as the smallest, in raster order."""
        keep = int(context.sum(dim=1).min())
        score = torch.rand(context.shape, generator=generator).masked_fill_(~context, -1.0)
        return score.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values

    def _check_geometry(self) -> None:
        where = f"on a {self.height}x{self.width} grid"
        least = self.min_keep + (self.official is not None)  # the official test is a strict one
        height, width = self._smallest_target()
        if height * width < least:
            raise ValueError(
                f"target blocks can be as small as {height}x{width} = {height * width} tokens {where}, fewer than the "
                f"{least} that min_keep {self.min_keep} asks for: lower min_keep to "
                f"{height * width - least + self.min_keep} or raise target_scale {list(self.target_scale)}"
            )
        hidden = 0 if self.allow_overlap else height * width
        height, width = (self.official or self).block_size(self.context_scale[0], 1.0)
        if height * width - hidden < least:
            raise ValueError(
                f"the context block can be as small as {height}x{width} = {height * width} tokens {where}; without a "
                f"target of {hidden} tokens that is fewer than the {least} that min_keep {self.min_keep} asks for: "
                f"raise context_scale {list(self.context_scale)} or lower target_scale {list(self.target_scale)}"
            )

    def _smallest_target(self) -> tuple[int, int]:
        """Both sides grow with the area, so only the aspect ratio has to be searched, at the least area."""
        steps = [i / 1000 for i in range(1001)]
        if self.official is not None:  # one random number sets both
            drawn = [(_between(self.target_scale, u), _between(self.target_aspect_ratio, u)) for u in steps]
            return min((self.official.block_size(*pair) for pair in drawn), key=math.prod)
        least = self.target_scale[0]
        sizes = (self.block_size(least, _between(self.target_aspect_ratio, u)) for u in steps)
        return min(sizes, key=math.prod)


def _between(bounds: Range, u: float) -> float:
    return bounds[0] + u * (bounds[1] - bounds[0])

"""What one family of spatio-temporal blocks is, and the grid that it lies on (V-JEPA section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jepa_lightning.masking.cut import Ints
from jepa_lightning.masking.sampler import Grid, Range, check_ranges


@dataclass(frozen=True)
class Blocks:
    """One family of masks: blocks of one size for a batch; their union is hidden and predicted.

    The causal[p] of the paper's ablation, where p of 16 frames can be context, is ``max_temporal_keep=p / 16``.

    Args:
        num_blocks: Blocks for each sample; they may overlap.
        spatial_scale: Smallest and largest area of a block over the area of a frame.
        temporal_scale: Smallest and largest duration of a block over the duration of the clip.
        aspect_ratio: Smallest and largest height over width of a block.
        max_temporal_keep: Fraction of the time steps, from the first, that can be context; all later ones are targets.
        max_keep: Most tokens in the context; None for no limit. With ``pred_full_complement`` it has no effect.
        full_complement: Everything that is not context is target, also what was cut from the contexts and targets to
            make them equally long in the batch. Goes before ``pred_full_complement``.
        pred_full_complement: Likewise, everything that is not target is context.
        inv_block: Swap the two at the end: the blocks are the context, the rest is the target.

    Raises:
        ValueError: If a value is out of its range.
    """

    num_blocks: int = 8
    spatial_scale: Range = (0.15, 0.15)
    temporal_scale: Range = (1.0, 1.0)
    aspect_ratio: Range = (0.75, 1.5)
    max_temporal_keep: float = 1.0
    max_keep: int | None = None
    full_complement: bool = False
    pred_full_complement: bool = False
    inv_block: bool = False

    def __post_init__(self) -> None:
        """Refuse what no grid can satisfy."""
        scales = {"spatial_scale": self.spatial_scale, "temporal_scale": self.temporal_scale}
        check_ranges(scales, {"aspect_ratio": self.aspect_ratio})
        if not 0 < self.max_temporal_keep <= 1:
            raise ValueError(f"max_temporal_keep must be a fraction in (0, 1], got {self.max_temporal_keep}")
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {self.num_blocks}")
        if self.max_keep is not None and self.max_keep < 1:
            raise ValueError(f"max_keep must be at least 1 or null, got {self.max_keep}")

    def size(self, grid: Grid, temporal: float, spatial: float, aspect: float, keep_area: bool = True) -> Grid:
        """Steps, height and width of a block from three numbers in [0, 1], which choose a place in each range.

        Args:
            grid: Steps, height and width of the clip.
            temporal: Place in ``temporal_scale``.
            spatial: Place in ``spatial_scale``.
            aspect: Place in ``aspect_ratio``.
            keep_area: Where the grid is too flat for the aspect ratio, keep the area; officially the block is clipped.
        """
        steps = max(1, int(grid[0] * between(self.temporal_scale, temporal)))
        area = int(grid[1] * grid[2] * between(self.spatial_scale, spatial))
        ratio = between(self.aspect_ratio, aspect)
        height, width = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if keep_area and height > grid[1]:
            height, width = grid[1], area / grid[1]
        elif keep_area and width > grid[2]:
            height, width = area / grid[2], grid[2]
        return steps, min(max(1, round(height)), grid[1]), min(max(1, round(width)), grid[2])

    def steps_kept(self, grid: Grid) -> int:
        """How many time steps can be context."""
        return max(1, int(grid[0] * self.max_temporal_keep))

    def arranged(self, context: Ints, targets: Ints, tokens: int) -> tuple[Ints, Ints]:
        """The masks after the options that look at whole masks; ``context`` and ``targets`` are already cut.

        Args:
            context: Indices (batch, Nc) outside the blocks.
            targets: Indices (batch, Nt) in the blocks.
            tokens: Tokens in the grid, N.
        """
        if self.full_complement:
            targets = _others(context, tokens)
        elif self.pred_full_complement:
            context = _others(targets, tokens)
        return (targets, context) if self.inv_block else (context, targets)


def _others(indices: Ints, tokens: int) -> Ints:
    """The tokens that are not in ``indices`` (batch, k), as (batch, N - k), ascending."""
    rest = np.ones((len(indices), tokens), dtype=bool)
    np.put_along_axis(rest, indices, values=False, axis=1)
    return np.nonzero(rest)[1].reshape(len(indices), -1)


def between(bounds: Range, u: float) -> float:
    """The lower bound plus the fraction ``u`` of the range."""
    return bounds[0] + u * (bounds[1] - bounds[0])


def thw(grid: Grid | tuple[int, int] | int) -> Grid:
    """Steps in time, height and width of a grid in tokens; an image, given by its side or sides, has one step.

    Raises:
        ValueError: If it has no tokens.
    """
    sides = (grid, grid) if isinstance(grid, int) else grid
    steps, height, width = (1, *sides) if len(sides) == 2 else sides
    if min(steps, height, width) < 1:
        raise ValueError(f"a grid needs at least one token along time, height and width, got {grid}")
    return steps, height, width

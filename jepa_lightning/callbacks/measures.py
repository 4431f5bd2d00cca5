"""Tensor functions of health and alarm: rows of features, baselines, statistics and pictures of masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.utils import make_grid

from jepa_lightning import metrics
from jepa_lightning.masking import Grid, TokenMasks, gather_tokens

ROWS_FOR_DIMENSION = 256
"""Fewest rows for a correlation dimension, which counts the closest hundredth of the pairs."""

CELL = 16
"""Side of a patch in the picture of mask coverage, in pixels."""


def some_rows(
    tokens: Float[Tensor, "batch *k dim"], index: Int[Tensor, "batch *k"] | None, most: int, seed: int
) -> Float[Tensor, "rows dim"]:
    """A copy of at most ``most`` tokens, drawn with ``seed`` alone; an index of -1 stands for no token."""
    flat = tokens.flatten(0, -2)
    if index is not None and bool((index < 0).any()):
        flat = flat[(index >= 0).flatten()]
    chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:most]
    return flat[chosen.to(flat.device)].float()


def pooled(tokens: Float[Tensor, "batch *k dim"], index: Int[Tensor, "batch *k"] | None) -> Float[Tensor, "batch dim"]:
    """The mean token of each sample; an index of -1 stands for no token."""
    tokens = tokens.float().flatten(1, -2)
    if index is None:
        return tokens.mean(dim=1)
    kept = (index >= 0).flatten(1).unsqueeze(-1)
    return (tokens * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1)


def targets_of(features: Float[Tensor, "batch n dim"], masks: TokenMasks) -> Float[Tensor, "batch m nt dim"]:
    """The features that are to be predicted; where there is no token, those of some other."""
    return gather_tokens(features, masks.targets.clamp_min(0))


def nearest_context(
    features: Float[Tensor, "batch n dim"], masks: TokenMasks, grid: Grid
) -> Float[Tensor, "batch m nt dim"]:
    """A baseline of predictions that uses continuity alone: the target feature of the nearest context patch.

    Distances are measured on the grid, where a step in time is as long as a step in space.
    """
    context, targets = (_places(index, grid) for index in (masks.context, masks.targets.flatten(1)))
    distance = torch.cdist(targets, context).masked_fill((masks.context < 0).unsqueeze(1), torch.inf)
    nearest = masks.context.gather(1, distance.argmin(dim=2))  # (B, M * Nt)
    return gather_tokens(features, nearest).unflatten(1, masks.targets.shape[1:])


def _places(index: Int[Tensor, "batch k"], grid: Grid) -> Float[Tensor, "batch k 3"]:
    _, height, width = grid
    return torch.stack([index // (height * width), index % (height * width) // width, index % width], dim=-1).float()


def describe(name: str, rows: Float[Tensor, "rows dim"]) -> dict[str, float]:
    """Spread, rank, spectrum and dimension of features, as `NAME_std`, ...; too few rows have fewer of them."""
    if len(rows) < 8:
        return {}
    deviation = rows.std(dim=0, correction=0)
    measured = {
        "std": deviation.mean(),
        "std_min": deviation.min(),
        "rankme": metrics.rankme(rows),
        "alpha_req": metrics.alpha_req(rows),
        "uniformity": metrics.uniformity(rows),
    }
    if len(rows) >= ROWS_FOR_DIMENSION:
        measured["correlation_dimension"] = metrics.correlation_dimension(rows)
    return {f"{name}_{measure}": float(value) for measure, value in measured.items()}


def count_tokens(counts: Float[Tensor, "parts n"], masks: Sequence[TokenMasks]) -> None:
    """Add to ``counts``, two rows for each family, how often each token was context and how often a target."""
    for family, (context, targets) in enumerate(masks):
        for part, index in enumerate((context, targets)):
            kept = (index >= 0).flatten()
            counts[2 * family + part].scatter_add_(0, index.flatten().clamp_min(0), kept.to(counts.dtype))


def coverage(counts: Float[Tensor, "parts n"], grid: Grid) -> Float[Tensor, "3 height width"]:
    """A picture of how often each token was chosen: white the most often, black never.

    Rows are context and targets of each family of masks, columns are steps in time.
    """
    share = counts / counts.max(dim=1, keepdim=True).values.clamp_min(1)
    cells = share.reshape(-1, 1, *grid[1:])  # (parts * T', 1, H', W')
    return make_grid(F.interpolate(cells, scale_factor=CELL, mode="nearest"), nrow=grid[0], padding=4, pad_value=0.5)

"""Dense features as pictures: principal components between patches, the foreground, a patch that is followed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from jepa_lightning.callbacks.pictures import pca_rgb
from jepa_lightning.evaluation.propagation import carried
from jepa_lightning.masking import Grid

FINER = 4
"""Rows and columns of a picture for one of tokens."""
DARK = 24
"""Grey value of the background."""


def components(
    tokens: Float[Tensor, "tokens dim"], grid: Grid, finer: int = FINER, threshold: float = 0.0
) -> UInt8[Tensor, "3 steps rows columns"]:
    """The first three principal components as colours, bilinear between tokens.

    Args:
        tokens: Tokens of an image or a clip.
        grid: Their number along time, height and width.
        finer: Rows and columns for one of tokens.
        threshold: 0 to show everything. Above 0, only where the first component, from 0 to 1, is at least that, and
            the colours are the components of what is left (DINOv2); below 0, only where it is at most 1 + threshold,
            as the sign of a component means nothing.
    """
    steps, rows, columns = grid
    maps = tokens.float().unflatten(0, grid).permute(0, 3, 1, 2)  # (T', D, H', W')
    if finer > 1:
        maps = F.interpolate(maps, scale_factor=finer, mode="bilinear", align_corners=False)
    fine, flat = (steps, finer * rows, finer * columns), maps.permute(0, 2, 3, 1).flatten(0, 2)
    if threshold == 0.0:
        return _bytes(pca_rgb(flat.unsqueeze(0), fine)[0])
    first = pca_rgb(flat.unsqueeze(0), fine)[0, 0].flatten()
    kept = first >= threshold if threshold > 0 else first <= 1 + threshold
    shown = torch.full((3, len(flat)), DARK, dtype=torch.uint8)
    if int(kept.sum()) > 3:
        inside = flat[kept]
        shown[:, kept] = _bytes(pca_rgb(inside.unsqueeze(0), (1, 1, len(inside)))[0]).flatten(1)
    return shown.unflatten(1, fine)


def followed(tokens: Float[Tensor, "tokens dim"], grid: Grid, patch: int) -> Float[Tensor, " tokens"]:
    """How much of the label of one patch each patch of its own and of later steps gets; not a number before it."""
    step, place = divmod(patch, grid[1] * grid[2])
    first = F.one_hot(torch.tensor(place), grid[1] * grid[2]).float().reshape(grid[1], grid[2], 1)
    found = torch.full((grid[0], grid[1] * grid[2]), torch.nan)
    found[step:] = carried(tokens.unflatten(0, grid)[step:], first)[..., 0].flatten(1)
    return found.flatten()


def _bytes(colours: Tensor) -> Tensor:
    return (colours * 255).round().to(torch.uint8)

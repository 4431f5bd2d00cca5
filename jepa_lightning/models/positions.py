"""Fixed sine-cosine positions (I-JEPA section 3; Vaswani et al. 2017), and their use on another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int, int]
"""Tokens along time, height and width; time is 1 for images."""


def sincos_1d(positions: Tensor, dim: int) -> Float[Tensor, "positions dim"]:
    """``[sin(p w), cos(p w)]`` with ``w_k = 10000^(-k / (dim / 2))``, in float64."""
    frequency = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.outer(positions.double(), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(height: int, width: int, dim: int) -> Float[Tensor, "1 tokens dim"]:
    """Positions of a height x width grid in raster order: the column fills the first half of the channels.

    Raises:
        ValueError: If ``dim`` is not a multiple of 4 (sine and cosine of two coordinates).
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a dimension divisible by 4, got {dim}")
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    halves = [sincos_1d(columns.flatten(), dim // 2), sincos_1d(rows.flatten(), dim // 2)]
    return torch.cat(halves, dim=1).float().unsqueeze(0)


def fit_positions(table: Float[Tensor, "1 tokens dim"], grid: Grid, wanted: Grid) -> Float[Tensor, "1 wanted dim"]:
    """The position table of ``grid`` resampled (bicubic) to the grid of another input size; itself if equal.

    Interpolating keeps the coordinates inside the range seen in training, as Hugging Face and timm do;
    the official I-JEPA code crashes on every size but its own.
    """
    if wanted == grid:
        return table
    picture = table.reshape(1, *grid[1:], -1).permute(0, 3, 1, 2).float()
    resampled = F.interpolate(picture, size=wanted[1:], mode="bicubic", align_corners=False)
    return resampled.flatten(2).transpose(1, 2).to(table.dtype)

"""Whether tokens find the same point again: in another view, or in a later frame. Nothing is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def matched_points(
    tokens: Float[Tensor, "h w dim"],
    other: Float[Tensor, "h2 w2 dim"],
    points: Float[Tensor, "k 2"],
    size: tuple[int, int],
    other_size: tuple[int, int],
) -> Float[Tensor, "k 2"]:
    """Where points of one picture are in another: the middle of the token that is most alike.

    Args:
        tokens: Tokens of the picture with the points; between the middles of tokens they are interpolated.
        other: Tokens of the picture in which they are looked for.
        points: Column x and row y in pixels, 0 at the left and upper border.
        size: Height and width of the first picture in pixels.
        other_size: Height and width of the other.
    """
    scale = torch.tensor([size[1], size[0]], dtype=torch.float32)
    grid = (points.float() / scale * 2 - 1).view(1, 1, -1, 2)  # from -1 to 1 between the borders
    maps = tokens.permute(2, 0, 1)[None].float()
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T
    similarity = F.normalize(found, dim=-1) @ F.normalize(other.flatten(0, 1).float(), dim=-1).T
    best, (height, width) = similarity.argmax(dim=1), other.shape[:2]
    middles = torch.stack([best % width + 0.5, best // width + 0.5], dim=1)
    return middles * torch.tensor([other_size[1] / width, other_size[0] / height])


def within(
    found: Float[Tensor, "k 2"], true: Float[Tensor, "k 2"], size: tuple[int, int], alpha: float = 0.1
) -> Bool[Tensor, " k"]:
    """Which points lie within alpha times the longer side of the picture of where they are: their mean is PCK@alpha."""
    return (found - true).norm(dim=1) <= alpha * max(size)

"""Labels of the first frame carried through a clip by tokens that are alike, and the score J&F of DAVIS.

The protocol of DINO (Caron et al. 2021) on DAVIS-2017 (Pont-Tuset et al. 2017); nothing is trained.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepa_lightning.evaluation.segmentation import token_shares, upsampled


class Propagation(NamedTuple):
    """How labels are carried on.

    Attributes:
        last: Frames before the present one that are looked at, beside the first.
        radius: Rows and columns of tokens around the same place that are looked at.
        k: Tokens whose labels are mixed.
        temperature: Of their weights exp(cosine / temperature).
    """

    last: int = 7
    radius: int = 12
    k: int = 5
    temperature: float = 0.1


@torch.no_grad()
def carried(
    tokens: Float[Tensor, "t h w dim"], first: Float[Tensor, "h w labels"], options: Propagation | None = None
) -> Float[Tensor, "t h w labels"]:
    """How much of each label each token gets, from those that the first frame has.

    Args:
        tokens: Tokens of each frame, or tubelet, on their grid.
        first: Labels of the tokens of the first frame.
        options: How; None for the values of DINO.
    """
    options = options or Propagation()
    grid, units = tokens.shape[1:3], F.normalize(tokens.float().flatten(1, 2), dim=-1)  # (T, N, D)
    rows, columns = (torch.arange(side, device=tokens.device) for side in grid)
    place = torch.cartesian_prod(rows, columns)  # (N, 2)
    near = (place[:, None] - place).abs().amax(dim=-1) <= options.radius  # (N, N)
    maps = [first.flatten(0, 1)]  # (N, labels)
    for frame in range(1, len(tokens)):
        seen = sorted({0, *range(max(0, frame - options.last), frame)})
        similarity = torch.cat(
            [(units[frame] @ units[other].T).masked_fill(~near, -torch.inf) for other in seen], dim=1
        )
        nearest, index = similarity.topk(min(options.k, similarity.shape[1]), dim=1)
        weights = (nearest / options.temperature).softmax(dim=1)  # (N, k)
        labels = torch.cat([maps[other] for other in seen])
        maps.append((weights.unsqueeze(-1) * labels[index]).sum(dim=1))
    return torch.stack(maps).unflatten(1, grid)


@torch.no_grad()
def propagate(
    tokens: Float[Tensor, "t h w dim"],
    first: Int[Tensor, "H W"],
    objects: int,
    options: Propagation | None = None,
    size: tuple[int, int] | None = None,
) -> Int[Tensor, "t height width"]:
    """The object of each pixel in each frame, 0 for the background.

    Args:
        tokens: Tokens of each frame, or tubelet, on their grid.
        first: Objects of the first frame, from 1; 0 is the background.
        objects: How many objects there are.
        options: How; None for the values of DINO.
        size: Height and width of the result; None for those of ``first``.
    """
    shares = carried(tokens, token_shares(first[None], (tokens.shape[1], tokens.shape[2]), objects + 1)[0], options)
    large = upsampled(shares, size or (first.shape[0], first.shape[1]))
    least, most = (extreme(large.flatten(2), dim=2)[..., None, None] for extreme in (torch.amin, torch.amax))
    # Each object's highest value counts as certain, or what is thinner than a token would be lost (DINO's protocol).
    return torch.where(most > 0, (large - least) / (most - least).clamp(min=1e-12), large).argmax(dim=1)


def region(predicted: Bool[Tensor, "H W"], true: Bool[Tensor, "H W"]) -> float:
    """J: intersection over union of two masks; 1 if both are empty."""
    union = int((predicted | true).sum())
    return int((predicted & true).sum()) / union if union else 1.0


def boundary(mask: Bool[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """Pixels that differ from their right, lower or lower right neighbour; the border of the picture is none."""
    padded = F.pad(mask[None].float(), (0, 1, 0, 1), mode="replicate")[0] > 0
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def contour(predicted: Bool[Tensor, "H W"], true: Bool[Tensor, "H W"], tolerance: float = 0.008) -> float:
    """F: harmonic mean of the precision and the recall of boundaries, with a tolerance.

    Args:
        predicted: A mask.
        true: The true one.
        tolerance: Distance up to which boundaries agree, over the diagonal of the picture, rounded up to pixels.
    """
    ours, theirs = boundary(predicted), boundary(true)
    radius = math.ceil(tolerance * math.hypot(*predicted.shape)) if tolerance < 1 else int(tolerance)
    if not ours.any() or not theirs.any():
        return float(bool(ours.any()) == bool(theirs.any()))
    precision, recall = _share(ours, theirs, radius), _share(theirs, ours, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share(points: Bool[Tensor, "H W"], others: Bool[Tensor, "H W"], radius: int) -> float:
    """Fraction of the points that have one of the others within a radius."""
    steps = torch.arange(-radius, radius + 1, device=points.device)
    disk = (steps[:, None].square() + steps.square() <= radius**2).float()
    reached = F.conv2d(others[None, None].float(), disk[None, None], padding=radius)[0, 0] > 0
    return int((points & reached).sum()) / int(points.sum())


def scored_frames(frames: int) -> range:
    """All but the first, which was given, and the last; of two frames the second, which DAVIS does not have."""
    return range(1, frames - 1) if frames > 2 else range(1, frames)


def j_and_f(predicted: Int[Tensor, "t H W"], true: Int[Tensor, "t H W"], objects: int) -> Float[Tensor, "objects 2"]:
    """J and F of each object of a clip, means over the frames that are scored.

    DAVIS gives the means of both over the objects of all clips, and J&F, the mean of the two.
    """
    frames, each = scored_frames(len(true)), []
    for number in range(1, objects + 1):
        pairs = [(predicted[t] == number, true[t] == number) for t in frames]
        each.append(torch.tensor([[region(*pair), contour(*pair)] for pair in pairs]).mean(dim=0))
    return torch.stack(each)

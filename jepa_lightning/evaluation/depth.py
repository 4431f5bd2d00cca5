"""How far each pixel is, read off frozen tokens by a linear head over bins of depth; the scores RMSE and delta 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning.evaluation.segmentation import LinearHead, Recipe, upsampled


class DepthHead(nn.Module):
    """A linear head whose outputs weigh the middles of equal bins (AdaBins, Bhat et al. 2021; DINOv2, DINOv3).

    Args:
        dim: Channels of the tokens.
        nearest: Least depth, in the unit of the labels.
        farthest: Largest depth.
        bins: Number of bins.
    """

    middles: Tensor

    def __init__(self, dim: int, nearest: float = 0.001, farthest: float = 10.0, bins: int = 256) -> None:
        super().__init__()
        if not 0 < nearest < farthest:
            raise ValueError(f"depth needs 0 < nearest < farthest, got {nearest} and {farthest}")
        self.head = LinearHead(dim, bins)
        self.register_buffer("middles", torch.linspace(nearest, farthest, bins))

    def forward(self, tokens: Float[Tensor, "batch h w dim"], size: tuple[int, int]) -> Float[Tensor, "batch H W"]:
        """The depth of each pixel: that of each token, bilinear between them."""
        weights = self.head(tokens).relu() + 0.1
        depth = (weights * self.middles).sum(dim=-1, keepdim=True) / weights.sum(dim=-1, keepdim=True)
        return upsampled(depth, size)[:, 0]


def scale_invariant(predicted: Tensor, depth: Tensor) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2) with g = log predicted - log depth, over pixels with a depth (Eigen 2014)."""
    known = depth > 0
    g = predicted[known].log() - depth[known].log()
    return (g.var(correction=0) + 0.15 * g.mean().square() + 1e-12).sqrt()


DEPTH_RECIPE = Recipe(lr=3e-4, weight_decay=1e-4, warmup=1 / 3)
"""DINOv3's rate, weight decay and warm-up; of 38,400 steps there."""
DEPTH_CLIP = 35.0
"""Largest norm of the gradient."""


def depth_error(
    head: nn.Module, tokens: Float[Tensor, "batch h w dim"], depth: Float[Tensor, "batch H W"]
) -> Tensor | None:
    """The scale-invariant error at the resolution of the labels; None where no depth is known."""
    if not (depth > 0).any():
        return None
    return scale_invariant(head(tokens, depth.shape[1:]), depth)


class DepthSums(NamedTuple):
    """Sums over pixels with a known depth, which add up over batches.

    Attributes:
        squares: Of the errors.
        close: Pixels whose ratio to the truth, or its inverse, is below 1.25.
        pixels: With a known depth.
    """

    squares: float
    close: int
    pixels: int

    def __add__(self, other: object) -> DepthSums:
        """The sums of both."""
        assert isinstance(other, DepthSums)
        return DepthSums(self.squares + other.squares, self.close + other.close, self.pixels + other.pixels)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, in the unit of the labels, over all pixels."""
        return (self.squares / self.pixels) ** 0.5 if self.pixels else float("nan")

    @property
    def delta1(self) -> float:
        """Fraction of the pixels within a factor of 1.25."""
        return self.close / self.pixels if self.pixels else float("nan")


def depth_sums(predicted: Float[Tensor, "*pixels"], depth: Float[Tensor, "*pixels"]) -> DepthSums:
    """What RMSE and delta 1 are computed from."""
    known = depth > 0
    predicted, depth = predicted[known].double(), depth[known].double()
    ratio = torch.maximum(predicted / depth, depth / predicted)
    return DepthSums(float((predicted - depth).square().sum()), int((ratio < 1.25).sum()), int(known.sum()))

"""Vectors from tokens without a parameter: averages over the last blocks of an encoder, and the pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PIXEL_GRID = {4: (16, 16), 5: (4, 8, 8)}
"""To what raw pixels are averaged, by the dimensions of a batch."""
PIXEL_FEATURES = 3 * 16 * 16
"""Numbers that are left of an image and of a clip, of any size."""


@dataclass(frozen=True)
class AveragePool:
    """Features of an image or a clip: the mean of the tokens of each of the last blocks, one after the other.

    I-JEPA, appendix A.2, takes the last block or the last four; it does not say whether inner ones pass through the
    encoder's final norm. Here they do.

    Args:
        blocks: How many of the last blocks, 1 or more.
    """

    blocks: int = 1

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks of the pooled features must be at least 1, got {self.blocks}")

    def __str__(self) -> str:
        """``last block``, ``last 4 blocks``."""
        return "last block" if self.blocks == 1 else f"last {self.blocks} blocks"


def pooled(
    encoder: nn.Module, inputs: Float[Tensor, "batch channels *size"], kinds: Sequence[AveragePool]
) -> list[Float[Tensor, "batch features"]]:
    """Features of each kind, from one pass of the encoder; (B, blocks * D) with the last block's at the end.

    Raises:
        ValueError: If the encoder has fewer blocks.
    """
    most, depth = max(kind.blocks for kind in kinds), getattr(encoder, "depth", 1)
    if most > depth:
        raise ValueError(
            f"the features of {most} blocks are wanted, {type(encoder).__name__} shows {depth}: use fewer blocks"
        )
    layers = [encoder(inputs)] if most == 1 else encoder(inputs, layers=range(-most, 0))
    means = [tokens.mean(dim=1) for tokens in layers]
    return [torch.cat(means[most - kind.blocks :], dim=1) for kind in kinds]


def raw_pixels(inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch features"]:
    """The pixels as features, averaged to 16 x 16, of clips to 4 frames of 8 x 8; smaller ones are repeated."""
    pool = cast(Any, F.adaptive_avg_pool2d if inputs.ndim == 4 else F.adaptive_avg_pool3d)
    return pool(inputs.float(), PIXEL_GRID[inputs.ndim]).flatten(1)

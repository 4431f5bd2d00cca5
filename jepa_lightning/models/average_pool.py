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

    I-JEPA, appendix A.2, takes the last block or the last four; it does not say whether those inside pass through the
    encoder's final norm.

    Args:
        blocks: How many of the last blocks, 1 or more.
        final_norm: Pass inner blocks through the final norm, which the last one always has.
    """

    blocks: int = 1
    final_norm: bool = True

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks of the pooled features must be at least 1, got {self.blocks}")

    def __str__(self) -> str:
        """``last block``, ``last 4 blocks``."""
        if self.blocks == 1:
            return "last block"
        return f"last {self.blocks} blocks" + ("" if self.final_norm else " without final norm")


def pooled(
    encoder: nn.Module, inputs: Float[Tensor, "batch channels *size"], kinds: Sequence[AveragePool]
) -> list[Float[Tensor, "batch features"]]:
    """Features of each kind, from one pass of the encoder; (B, blocks * D) with the last block's at the end.

    Raises:
        ValueError: If the encoder has fewer blocks, or no ``blocks`` and ``norm`` where inner ones are wanted.
    """
    most = max(kind.blocks for kind in kinds)
    if most == 1:
        return [encoder(inputs).mean(dim=1)] * len(kinds)
    blocks, norm = getattr(encoder, "blocks", None), getattr(encoder, "norm", None)
    if blocks is None or norm is None:
        raise ValueError(f"{type(encoder).__name__} has no blocks and norm to read: use blocks: 1")
    if most > len(blocks):
        raise ValueError(f"the features of {most} blocks are wanted, the encoder has {len(blocks)}: use fewer")
    kept: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _, __, out: kept.append(out)) for b in cast(Any, blocks)[-most:]]
    try:
        last = encoder(inputs).mean(dim=1)
    finally:
        for hook in hooks:
            hook.remove()
    means = {
        final: [cast(Any, norm)(x).mean(dim=1) if final else x.mean(dim=1) for x in kept[:-1]]
        for final in {kind.final_norm for kind in kinds}
    }
    return [torch.cat([*means[k.final_norm][most - k.blocks :], last], dim=1) for k in kinds]


def raw_pixels(inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch features"]:
    """The pixels as features, averaged to 16 x 16, of clips to 4 frames of 8 x 8; smaller ones are repeated."""
    pool = cast(Any, F.adaptive_avg_pool2d if inputs.ndim == 4 else F.adaptive_avg_pool3d)
    return pool(inputs.float(), PIXEL_GRID[inputs.ndim]).flatten(1)

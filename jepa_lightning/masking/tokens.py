"""The batch that every method receives, and the one operation on token indices that all of them share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TokenMasks(NamedTuple):
    """Which tokens are shown and which are predicted; indices into the raster-ordered token grid.

    Attributes:
        context: Tokens that the context encoder sees, (B, Nc).
        targets: Tokens to predict, M blocks for each sample, (B, M, Nt).
    """

    context: Int[Tensor, "batch context"]
    targets: Int[Tensor, "batch blocks targets"]


class MaskedBatch(NamedTuple):
    """One training batch, every field batch-first.

    Attributes:
        inputs: Images (B, C, H, W) or clips (B, C, T, H, W).
        masks: One entry for each family of masks (I-JEPA: one; V-JEPA: short and long).
        labels: Class indices (B,), -1 where unknown; only probes read them.
        index: Position of each sample in its data set (B,).
    """

    inputs: Tensor
    masks: tuple[TokenMasks, ...]
    labels: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index


def gather_tokens(
    tokens: Float[Tensor, "batch tokens dim"], index: Int[Tensor, "batch *k"]
) -> Float[Tensor, "batch *k dim"]:
    """Keep the tokens that ``index`` names, in its order."""
    batch, count, dim = tokens.shape
    offset = count * torch.arange(batch, device=index.device).reshape(batch, *[1] * (index.ndim - 1))
    rows = tokens.reshape(batch * count, dim).index_select(0, (index + offset).flatten())
    return rows.reshape(*index.shape, dim)

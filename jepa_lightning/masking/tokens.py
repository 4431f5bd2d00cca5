"""The batch that every method receives, and the one operation on tokens that all of them share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lightning.masking.padded import Padded, longest


class TokenMasks(NamedTuple):
    """Which tokens are shown and which are predicted; indices into the raster-ordered token grid.

    Where samples have different numbers of tokens, short rows end in -1, which stands for no token.

    Attributes:
        context: Tokens that the context encoder sees, (B, Nc).
        targets: Tokens to predict, M blocks for each sample, (B, M, Nt).
    """

    context: Int[Tensor, "batch context"]
    targets: Int[Tensor, "batch blocks targets"]


class Family(NamedTuple):
    """A family of masks as networks take it: TokenMasks that know where their rows end.

    Attributes:
        context: (B, Nc).
        targets: (B, M, Nt).
    """

    context: Int[Tensor, "batch context"] | Padded
    targets: Int[Tensor, "batch blocks targets"] | Padded


Places = tuple[()] | tuple[Int[Tensor, " context"], Int[Tensor, " targets"], int]
"""Where the flattened context and targets of a family are tokens, and the longest sequence that they make together.

Nothing if there is no padding.
"""


class MaskedBatch(NamedTuple):
    """One training batch, every field batch-first.

    Attributes:
        inputs: Images (B, C, H, W) or clips (B, C, T, H, W).
        masks: One entry for each family of masks (I-JEPA: one; V-JEPA: short and long).
        labels: Class indices (B,), -1 where unknown; only probes read them.
        index: Position of each sample in its data set (B,).
        views: What methods of several views compare, one entry for each size: all views of that size, (B, V, C, h, w)
            of images or (B, V, C, T, h, w) of clips; the first entry holds the global views. Empty for other methods.
            ``inputs`` is then one view more or the first of these, for code that wants a single one.
        places: For each family of masks where its tokens are, if there is padding; the collator knows it before the
            batch goes to a device. Empty if not computed.
    """

    inputs: Tensor
    masks: tuple[TokenMasks, ...]
    labels: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index
    views: tuple[Tensor, ...] = ()
    places: tuple[Places, ...] = ()

    def families(self) -> tuple[Family, ...]:
        """The masks, for networks. Without ``places`` it has to look at them, and to wait for a device."""
        if len(self.places) != len(self.masks):
            return self._replace(places=tuple(places_of(masks) for masks in self.masks)).families()
        return tuple(
            Family(Padded(masks.context, at[0]), Padded(masks.targets, at[1], at[2])) if at else Family(*masks)
            for masks, at in zip(self.masks, self.places, strict=True)
        )


def places_of(masks: TokenMasks) -> Places:
    """What a batch says of a family of masks, found out before it goes to a device."""
    kept = masks.context >= 0, masks.targets >= 0
    if all(bool(part.all()) for part in kept):
        return ()
    context, targets = (part.flatten().nonzero().flatten() for part in kept)
    return context, targets, longest(*masks)


def rows_of(index: Int[Tensor, "batch *k"] | Padded, count: int) -> Int[Tensor, " total"]:
    """Where in the list of all tokens of a batch, ``count`` of each sample, those that ``index`` names are."""
    if isinstance(index, Padded):
        return index.tokens + count * (index.places // (index.indices.numel() // index.indices.shape[0]))
    offset = count * torch.arange(index.shape[0], device=index.device).reshape(-1, *[1] * (index.ndim - 1))
    return (index + offset).flatten()


def gather_tokens(
    tokens: Float[Tensor, "batch tokens dim"], index: Int[Tensor, "batch *k"] | Padded
) -> Float[Tensor, "batch *k dim"]:
    """Keep the tokens that ``index`` names, in its order; zeros where it has padding."""
    found = tokens.flatten(0, 1).index_select(0, rows_of(index, tokens.shape[1]))
    return index.pad(found) if isinstance(index, Padded) else found.reshape(*index.shape, tokens.shape[2])

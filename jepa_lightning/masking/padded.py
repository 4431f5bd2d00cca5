"""Token indices of samples with different numbers of tokens in one batch; no token is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Padded(NamedTuple):
    """Rows of token indices that differ in length, in one tensor.

    Networks take it where they take plain indices. They compute nothing for padding, and what they return has zeros
    there. The number of tokens is a shape, so that it is known without waiting for a device.

    Attributes:
        indices: (B, k) or (B, M, k); short rows end in -1, which stands for no token.
        places: Where the flattened indices are tokens, ascending, (total,).
        longest: For targets: tokens of the longest sequence of a context and a block of targets; None if unknown.
    """

    indices: Int[Tensor, "batch *k"]
    places: Int[Tensor, " total"]
    longest: int | None = None

    @property
    def counts(self) -> Int[Tensor, " rows"]:
        """Tokens of each row."""
        return (self.indices >= 0).sum(dim=-1).flatten()

    @property
    def columns(self) -> Int[Tensor, " total"]:
        """Which token of its row each token is, from 0."""
        return self.places % self.indices.shape[-1]

    @property
    def tokens(self) -> Int[Tensor, " total"]:
        """The indices without padding."""
        return self.indices.flatten()[self.places]

    def pack(self, values: Float[Tensor, "batch *k dim"]) -> Float[Tensor, "total dim"]:
        """Only the values that belong to tokens, in the order of the rows."""
        return values.reshape(-1, values.shape[-1]).index_select(0, self.places)

    def pad(self, values: Float[Tensor, "total dim"]) -> Float[Tensor, "batch *k dim"]:
        """The inverse of ``pack``, with zeros where no token is."""
        zeros = values.new_zeros(self.indices.numel(), values.shape[-1])
        return zeros.index_copy_(0, self.places, values).reshape(*self.indices.shape, values.shape[-1])

    def mean(self, values: Float[Tensor, "batch *k dim"]) -> Float[Tensor, ""]:
        """Mean over channels, then over the tokens of each row, then over rows.

        A row weighs the same whatever its length, so that each sample counts as it would alone, and the mean over
        processes with equally many samples is that of one process with all of them.
        """
        counts = self.counts
        row = self.places // self.indices.shape[-1]
        return (self.pack(values).mean(dim=-1) / counts[row]).sum() / len(counts)


def padded(indices: Int[Tensor, "batch *k"]) -> Int[Tensor, "batch *k"] | Padded:
    """Find out whether rows end in -1: Padded if one does, else the indices themselves.

    This looks at the data. Of indices on a GPU it has to wait for them; MaskCollator looks before they go there.
    """
    kept = indices >= 0
    return indices if bool(kept.all()) else Padded(indices, kept.flatten().nonzero().flatten())


def longest(context: Int[Tensor, "batch nc"], targets: Int[Tensor, "batch m nt"]) -> int:
    """Tokens of the longest sequence of a context and a block of targets; looks at the data."""
    counts = (context >= 0).sum(dim=1, keepdim=True) + (targets >= 0).sum(dim=2)
    return int(counts.max())


def known(index: Int[Tensor, "batch *k"] | Padded) -> Int[Tensor, "batch *k"] | Padded:
    """For networks: the index, in which padding is not overlooked.

    Plain indices on the CPU are looked at, which costs nothing. Elsewhere they must not hold padding: that is checked
    by the device, without waiting for it, since the -1 of one sample would read the last token of the one before.
    """
    if isinstance(index, Padded):
        return index
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        return padded(index)
    torch._assert_async((index >= 0).all(), "indices with padding (-1) must be given as jepa_lightning.masking.Padded")
    return index


def mean_of(values: Float[Tensor, "batch *k dim"], index: Int[Tensor, "batch *k"] | Padded) -> Float[Tensor, ""]:
    """The mean of the values at ``index``; of Padded such that each row weighs the same."""
    return index.mean(values) if isinstance(index, Padded) else values.mean()


def without_padding(
    values: Float[Tensor, "batch *k dim"], index: Int[Tensor, "batch *k"] | Padded
) -> Float[Tensor, "*rows dim"]:
    """The values at ``index``; of Padded only those that belong to tokens, (total, dim)."""
    return index.pack(values) if isinstance(index, Padded) else values


def mean_length(index: Int[Tensor, "batch *k"] | Padded) -> float:
    """Tokens in a row, on average."""
    if isinstance(index, Padded):
        return len(index.places) * index.indices.shape[-1] / max(1, index.indices.numel())
    return index.shape[-1]


def stacked(rows: Sequence[Int[Tensor, "1 ..."]]) -> Int[Tensor, "batch ..."]:
    """Indices of single samples as those of a batch; rows that are shorter than the longest end in -1."""
    filled = pad_sequence([row[0].movedim(-1, 0) for row in rows], batch_first=True, padding_value=-1)
    return filled.movedim(1, -1).contiguous()

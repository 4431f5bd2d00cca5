"""Sequences of different lengths without work for padding: one list of tokens, padded only inside attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Packing(NamedTuple):
    """Where the tokens of a list belong in a table of sequences.

    Layers that look at one token at a time take the list, (1, total, D). Attention takes the table (rows, length, D),
    in which short sequences are padded, and does not attend to padding. Where lengths are known without waiting for a
    device, the list is sorted by them and attention takes a table of each length, which needs no padding. With lengths
    as those of I-JEPA's contexts both are faster than padding everywhere, than one masked sequence and than a loop: see
    benchmarks/packed.py.

    Attributes:
        places: Of each token in the flattened table, (total,).
        rows: Number of sequences.
        length: Of the longest sequence.
        keep: Where the table holds a token, as attention takes it, (rows, 1, 1, length).
        runs: For a list sorted by length: number and length of the sequences of each length; else empty.
    """

    places: Int[Tensor, " total"]
    rows: int
    length: int
    keep: Bool[Tensor, "rows 1 1 length"]
    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, places: Int[Tensor, " total"], rows: int, length: int) -> Packing:
        """The packing of tokens at these places."""
        keep = torch.zeros(rows * length, dtype=torch.bool, device=places.device)
        return cls(places, rows, length, keep.index_fill(0, places, value=True).reshape(rows, 1, 1, length))

    def pad(self, x: Float[Tensor, "1 total dim"]) -> Float[Tensor, "rows length dim"]:
        """From the list to the table; padding is 0."""
        table = x.new_zeros(self.rows * self.length, x.shape[-1]).index_copy_(0, self.places, x[0])
        return table.reshape(self.rows, self.length, -1)

    def pack(self, x: Float[Tensor, "rows length dim"]) -> Float[Tensor, "1 total dim"]:
        """From the table to the list."""
        return x.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def by_length(self) -> tuple[Packing, Int[Tensor, " total"]] | None:
        """The packing of the list sorted by length of sequence, and where each of its tokens was before.

        None where the lengths of this batch cannot be known now: on a GPU, and while a graph is compiled.
        """
        if self.places.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        counts = self.keep.flatten(1).sum(dim=1)
        lengths, rows = counts.unique(return_counts=True)
        key = counts[self.places // self.length] * self.keep.numel() + self.places
        order = key.argsort()
        runs = tuple(zip(rows.tolist(), lengths.tolist(), strict=True))
        return self._replace(places=self.places[order], runs=runs), order

    def tables(self, x: Float[Tensor, "1 total *dims"]) -> list[Float[Tensor, "rows length *dims"]]:
        """Of a sorted list a view of each run."""
        parts = x.split([rows * length for rows, length in self.runs], dim=1)
        return [part.reshape(*run, *part.shape[2:]) for part, run in zip(parts, self.runs, strict=True)]

    def spread(self, x: Float[Tensor, "rows 1 1"]) -> Float[Tensor, "1 total 1"]:
        """Broadcast a per-sequence scalar to its tokens."""
        return x[self.places // self.length].transpose(0, 1)

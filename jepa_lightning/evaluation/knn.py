"""Nearest neighbours by cosine similarity, exact over a whole training split."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lightning.evaluation.features import Features, accuracy, exact

CHUNK = 2**24
"""Numbers held at once: 128 MiB."""
SPARE = 16
"""Candidates of the search in float32 beyond ``k``, which are then compared exactly."""
DECIMALS = 10
"""To which similarities are compared: products of equal rows differ in the last bits with their place in a matrix."""


class Neighbours:
    """The nearest samples of a training split to each query, nearest first.

    Equally near samples are in the order of the training split; of classes with equal votes the first one wins, as in
    scikit-learn. The result is that of float64: a search in float32, whose rounding is bounded, finds candidates, which
    are compared in float64; queries for which the bound does not tell are searched in float64.

    Args:
        train: The training split, every sample with a label.
        x: The queries, (N, D).
        most: Number of neighbours that are kept; fewer if the split is smaller.
    """

    def __init__(self, train: Features, x: Float[Tensor, "samples dim"], most: int) -> None:
        if most < 1:
            raise ValueError(f"k must be at least 1, got {most}")
        bank, queries = (F.normalize(exact(part), dim=1) for part in (train.x, x))
        most = min(most, len(bank))
        rows = max(1, CHUNK // max(len(bank), (most + SPARE) * bank.shape[1]))
        rough = bank.float()
        parts = [_found(part, bank, rough, most) for part in queries.split(rows)]
        self.similarity = torch.cat([similarity for similarity, _ in parts])
        self.index = torch.cat([index for _, index in parts])
        self.labels = train.y.to(self.index.device)[self.index]
        self.classes = int(train.y.max()) + 1

    def vote(self, k: int, temperature: float = math.inf) -> Int[Tensor, " samples"]:
        """The class with most votes among the ``k`` nearest.

        Args:
            k: Neighbours that vote; all that are kept, if there are fewer.
            temperature: A neighbour votes with exp(similarity / temperature) (Wu et al. 2018, section 3.4); infinite
                for one vote each.
        """
        if k < 1 or temperature <= 0:
            raise ValueError(f"k must be at least 1 and temperature above 0, got {k} and {temperature}")
        k = min(k, self.labels.shape[1])
        # Relative to the nearest: the same shares of votes, but exp cannot overflow.
        weights = ((self.similarity[:, :k] - self.similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(weights), self.classes).scatter_add_(1, self.labels[:, :k], weights)
        return votes.argmax(dim=1)


def _found(
    queries: Float[Tensor, "chunk dim"],
    bank: Float[Tensor, "samples dim"],
    rough: Float[Tensor, "samples dim"],
    k: int,
) -> tuple[Float[Tensor, "chunk k"], Int[Tensor, "chunk k"]]:
    """As ``_nearest``, by a search in float32 among many samples."""
    if len(bank) < 4 * (k + SPARE):
        return _nearest(queries, bank, k)
    values, index = (queries.float() @ rough.T).topk(k + SPARE, dim=1)
    index = index.sort(dim=1).values
    similarity = torch.bmm(bank[index], queries.unsqueeze(2)).squeeze(2).round(decimals=DECIMALS)
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
    similarity, index = similarity.gather(1, order), index.gather(1, order)
    # Of unit vectors, sums of D products in any order are off by at most about D roundings (Higham 2002, section 3.1).
    bound = (bank.shape[1] + 4) * torch.finfo(torch.float32).eps
    unclear = (values[:, -1] + bound >= similarity[:, -1]).nonzero().flatten()
    if len(unclear):
        similarity[unclear], index[unclear] = _nearest(queries[unclear], bank, k)
    return similarity, index


def _nearest(
    queries: Float[Tensor, "chunk dim"], bank: Float[Tensor, "samples dim"], k: int
) -> tuple[Float[Tensor, "chunk k"], Int[Tensor, "chunk k"]]:
    similarity = (queries @ bank.T).round(decimals=DECIMALS)
    values, index = similarity.topk(k, dim=1)
    last = values[:, -1:]
    # topk takes any of those that are as near as the last one. Where it left some out, take the first of them.
    unclear = ((similarity == last).sum(dim=1) > (values == last).sum(dim=1)).nonzero().flatten()
    for row in unclear.tolist():
        index[row] = similarity[row].argsort(descending=True, stable=True)[:k]
    index = index.sort(dim=1).values
    order = similarity.gather(1, index).argsort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    return similarity.gather(1, index), index


def knn_top1(train: Features, held_out: Features, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy of weighted k nearest neighbours, in [0, 1]; see Neighbours."""
    return accuracy(Neighbours(train, held_out.x, k).vote(k, temperature), held_out.y)

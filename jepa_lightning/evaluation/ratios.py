"""Scores that are ratios of sums over samples, such as mIoU, RMSE or PCK, and their intervals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Real
from torch import Tensor

RESAMPLES = 1000
"""Draws of the samples, with replacement, of which an interval is made (Efron 1979)."""


def same(value: Tensor) -> Tensor:
    """The value."""
    return value


class Ratios:
    """Sums of each sample; the score is the mean over columns of the ratio of their totals.

    Args:
        finish: Applied to the ratio of each column: ``torch.sqrt`` for RMSE.
    """

    def __init__(self, finish: Callable[[Tensor], Tensor] = same) -> None:
        self.finish = finish
        self._above: list[Tensor] = []
        self._below: list[Tensor] = []

    def add(self, above: Real[Tensor, " columns"], below: Real[Tensor, " columns"]) -> None:
        """Add a sample: what is counted, and out of how much; a column of nothing does not count."""
        self._above.append(above.double().cpu())
        self._below.append(below.double().cpu())

    def __len__(self) -> int:
        return len(self._above)

    def columns(self) -> list[float]:
        """The ratio of each column; not a number where nothing was counted."""
        above, below = torch.stack(self._above).sum(dim=0), torch.stack(self._below).sum(dim=0)
        return self.finish(above / below).tolist()

    def mean(self) -> float:
        """The score."""
        return float(torch.tensor(self.columns(), dtype=torch.float64).nanmean())

    def interval(self) -> tuple[float, float]:
        """95 % interval over draws of the samples, the same draws for every encoder."""
        count = len(self._above)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
        times = torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(RESAMPLES, count, dtype=torch.float64)
        )
        scores = self.finish((times @ torch.stack(self._above)) / (times @ torch.stack(self._below))).nanmean(dim=1)
        low, high = scores.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high

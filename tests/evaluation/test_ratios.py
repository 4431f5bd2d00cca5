from __future__ import annotations

import math

import pytest
import torch

from jepa_lightning.evaluation.ratios import Ratios


def test_a_score_is_the_ratio_of_sums_averaged_over_the_columns_that_occur() -> None:
    score = Ratios()
    score.add(torch.tensor([1, 0, 0]), torch.tensor([4, 2, 0]))
    score.add(torch.tensor([3, 1, 0]), torch.tensor([4, 2, 0]))
    assert score.columns()[:2] == [0.5, 0.25]
    assert math.isnan(score.columns()[2])
    assert score.mean() == pytest.approx(0.375)


def test_the_root_is_taken_of_the_ratio() -> None:
    score = Ratios(torch.sqrt)
    score.add(torch.tensor([6.0]), torch.tensor([2]))
    score.add(torch.tensor([12.0]), torch.tensor([6]))
    assert score.mean() == pytest.approx(1.5)


def test_an_interval_covers_as_often_as_it_says_and_narrows_with_the_samples() -> None:
    generator, covered = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        score = Ratios()
        for hits in torch.rand(60, 10, generator=generator).lt(0.3).sum(dim=1):
            score.add(hits[None], torch.tensor([10]))
        low, high = score.interval()
        assert low <= score.mean() <= high
        covered += low <= 0.3 <= high
    assert 87 <= covered <= 99
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 600), rel=0.35)

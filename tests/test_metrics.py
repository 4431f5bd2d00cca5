from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa_lightning.metrics import explained_variance, feature_std, rankme


def orthogonal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64)).Q


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_equal_singular_values_is_their_number(rank: int) -> None:
    features = orthogonal(64, rank) @ orthogonal(8, rank).T
    assert rankme(features).item() == pytest.approx(rank, rel=1e-3)


def test_rankme_equals_its_formula() -> None:
    singular = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    features = orthogonal(20, 4) * singular @ orthogonal(4, 4).T
    share = singular / singular.sum() + 1e-7
    assert rankme(features).item() == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-9)


def test_rankme_of_collapsed_features_is_one() -> None:
    assert rankme(torch.randn(1, 16).expand(50, 16)).item() == pytest.approx(1.0, abs=1e-3)
    assert rankme(torch.zeros(50, 16)).item() == pytest.approx(1.0, abs=1e-3)


def test_rankme_of_noise_is_nearly_full_and_bounded() -> None:
    features = torch.randn(2000, 16)
    assert 15.5 < rankme(features).item() <= 16.001
    assert rankme(torch.randn(5, 16)).item() <= 5.001


def test_rankme_sees_neither_rotation_nor_scale_nor_order() -> None:
    features = torch.randn(100, 12, dtype=torch.float64) * torch.linspace(0.1, 2.0, 12)
    expected = rankme(features).item()
    assert rankme(features @ orthogonal(12, 12)).item() == pytest.approx(expected, rel=1e-9)
    assert rankme(7.0 * features).item() == pytest.approx(expected, rel=1e-9)
    assert rankme(features[torch.randperm(100)]).item() == pytest.approx(expected, rel=1e-9)


def test_rankme_of_single_precision_features_is_that_of_double_precision() -> None:
    features = torch.randn(300, 32) * torch.logspace(0, -6, 32)
    assert rankme(features).item() == pytest.approx(rankme(features.double()).item(), rel=1e-5)


def test_explained_variance_is_one_for_the_target_and_zero_for_its_mean() -> None:
    target = torch.randn(6, 7, 5) * 3.0 + 2.0
    mean = target.mean(dim=(0, 1)).expand_as(target)
    assert explained_variance(target, target).item() == 1.0
    assert explained_variance(mean, target).item() == pytest.approx(0.0, abs=1e-5)
    assert explained_variance(mean + 1.0, target).item() < -0.05


def test_explained_variance_equals_a_naive_loop() -> None:
    predicted, target = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    error = variance = 0.0
    for d in range(5):
        column = target[..., d].flatten()
        variance += float(((column - column.mean()) ** 2).mean()) / 5
        error += float(((predicted[..., d].flatten() - column) ** 2).mean()) / 5
    assert explained_variance(predicted, target).item() == pytest.approx(1 - error / variance, rel=1e-5)


def test_explained_variance_of_constant_targets_is_finite() -> None:
    assert torch.isfinite(explained_variance(torch.randn(9, 4), torch.ones(9, 4)))


def test_feature_std_is_the_scale_of_the_features_and_zero_in_a_collapse() -> None:
    assert feature_std(torch.ones(4, 9, 3)).item() == 0.0
    assert feature_std(2.5 * torch.randn(50, 400, 4)).item() == pytest.approx(2.5, rel=0.02)
    assert feature_std(torch.tensor([[1.0, 10.0], [3.0, 30.0]])).item() == pytest.approx((1.0 + 10.0) / 2)


def test_feature_std_ignores_the_mean() -> None:
    features = torch.randn(8, 6, 5)
    assert feature_std(features + 100.0).item() == pytest.approx(feature_std(features).item(), rel=1e-4)

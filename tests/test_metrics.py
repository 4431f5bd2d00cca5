from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning import metrics
from jepa_lightning.metrics import (
    alignment,
    alpha_req,
    attention_entropy,
    content_share,
    correlation_dimension,
    explained_variance,
    feature_std,
    lidar,
    rankme,
    relative_distance,
    uniformity,
)


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


# ---------------------------------------------------------------------- explained variance of trivial predictions


def test_explained_variance_equals_that_of_torchmetrics() -> None:
    from torchmetrics.functional import r2_score

    target = torch.randn(40, 6) * torch.linspace(0.1, 3.0, 6)
    predicted = target + torch.randn(40, 6)
    expected = r2_score(predicted, target, multioutput="variance_weighted")
    assert explained_variance(predicted, target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_prediction_is_compared_with_the_trivial_one_that_is_given() -> None:
    target, trivial = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    halfway = (target + trivial) / 2
    assert explained_variance(trivial, target, trivial).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(halfway, target, trivial).item() == pytest.approx(0.75)
    mean = target.mean(dim=(0, 1)).expand_as(target)
    assert explained_variance(halfway, target, mean).item() == pytest.approx(
        explained_variance(halfway, target).item(), rel=1e-5
    )


# ---------------------------------------------------------------------- LiDAR


def naive_lidar(features: Tensor, delta: float, eps: float) -> float:
    """Equations of the paper one after the other, with an explicit inverse square root."""
    samples, views, dim = features.shape
    overall = features.mean(dim=(0, 1))
    between, within = torch.zeros(dim, dim).double(), torch.zeros(dim, dim).double()
    for views_of_one in features.double():
        mean = views_of_one.mean(dim=0)
        between += torch.outer(mean - overall, mean - overall) / samples
        for view in views_of_one:
            within += torch.outer(view - mean, view - mean) / (samples * views)
    values, vectors = torch.linalg.eigh(within + delta * torch.eye(dim).double())
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ between @ root).clamp_min(0)
    share = eigenvalues / eigenvalues.sum() + eps
    return float(torch.exp(-(share * share.log()).sum()))


@pytest.mark.parametrize("shape", [(20, 5, 6), (4, 3, 10)])
def test_lidar_equals_its_formula(shape: tuple[int, int, int]) -> None:
    features = torch.randn(shape).double() + 2 * torch.randn(shape[0], 1, shape[2]).double()
    assert lidar(features).item() == pytest.approx(naive_lidar(features, 1e-4, 1e-7), rel=1e-6)
    assert lidar(features, delta=0.5, eps=1e-3).item() == pytest.approx(naive_lidar(features, 0.5, 1e-3), rel=1e-6)


@pytest.mark.parametrize("directions", [1, 3, 7])
def test_lidar_counts_the_directions_in_which_images_differ(directions: int) -> None:
    signal = orthogonal(200, directions) @ orthogonal(16, directions).T * 200**0.5
    features = signal.unsqueeze(1) + 0.01 * torch.randn(200, 8, 16).double()
    assert lidar(features).item() == pytest.approx(directions, rel=0.03)


def test_lidar_sees_nothing_in_directions_where_views_differ_as_images_do() -> None:
    features = 0.01 * torch.randn(100, 8, 12).double()
    features[..., :8] += torch.randn(100, 8, 8).double()  # differs between views: RankMe counts it, LiDAR does not
    features[..., 8:] += torch.randn(100, 1, 4).double()
    assert lidar(features).item() == pytest.approx(4.0, rel=0.1)
    assert rankme(features.flatten(0, 1)).item() > 9


def test_lidar_of_collapsed_features_is_one() -> None:
    assert lidar(torch.zeros(9, 3, 5)).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 4, 3), (4, 1, 3)])
def test_lidar_without_views_or_images_to_compare_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 2 inputs and 2 views"):
        lidar(torch.randn(shape))


# ---------------------------------------------------------------------- alpha-ReQ


def with_spectrum(eigenvalues: Tensor, samples: int) -> Tensor:
    """Features whose covariance has exactly these eigenvalues."""
    centred = torch.randn(samples, len(eigenvalues)).double()
    basis = torch.linalg.qr(centred - centred.mean(dim=0)).Q
    return basis * eigenvalues.sqrt() @ orthogonal(len(eigenvalues), len(eigenvalues)).T + 5.0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_alpha_req_of_a_power_law_is_its_exponent(alpha: float) -> None:
    eigenvalues = torch.arange(1, 33).double() ** -alpha
    assert alpha_req(with_spectrum(eigenvalues, 100)).item() == pytest.approx(alpha, abs=1e-6)


def test_alpha_req_equals_a_weighted_line_of_numpy() -> None:
    import numpy as np

    eigenvalues = torch.rand(20).double().sort(descending=True).values + 0.01
    number = np.arange(1, 21)
    slope, _ = np.polyfit(np.log(number), np.log(eigenvalues.numpy()), 1, w=number**-0.5)  # squared by numpy
    assert alpha_req(with_spectrum(eigenvalues, 50)).item() == pytest.approx(-slope, rel=1e-6)


def test_alpha_req_of_samples_is_near_that_of_their_distribution() -> None:
    features = torch.randn(2000, 64) * torch.arange(1, 65) ** -0.5
    assert alpha_req(features).item() == pytest.approx(1.0, rel=0.05)


def test_alpha_req_of_a_single_direction_is_infinite() -> None:
    assert alpha_req(torch.randn(30, 1) * torch.ones(1, 8)).item() == math.inf
    assert alpha_req(torch.ones(30, 8)).item() == math.inf


# ---------------------------------------------------------------------- uniformity and alignment


def test_uniformity_of_points_around_a_circle_is_that_of_the_uniform_distribution() -> None:
    angle = torch.arange(3000) * (2 * math.pi / 3000)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    expected = math.log(math.exp(-4) * float(torch.special.i0(torch.tensor(4.0))))  # mean of exp(-2 |x - y|^2)
    assert uniformity(circle).item() == pytest.approx(expected, abs=2e-3)


def test_uniformity_equals_a_naive_loop_and_ignores_the_length_of_features() -> None:
    features = torch.randn(12, 5)
    unit = F.normalize(features, dim=1)
    pairs = [math.exp(-3.0 * float((unit[i] - unit[j]).square().sum())) for i in range(12) for j in range(i)]
    assert uniformity(features, t=3.0).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert uniformity(features * torch.rand(12, 1), t=3.0).item() == pytest.approx(
        uniformity(features, t=3.0).item(), rel=1e-5
    )


def test_uniformity_of_collapsed_features_is_zero_and_of_spread_ones_below() -> None:
    assert uniformity(torch.ones(10, 4)).item() == 0.0
    assert uniformity(torch.randn(200, 64)).item() < -3.5


def test_alignment_of_equal_orthogonal_and_opposite_pairs() -> None:
    x = torch.randn(7, 3, 8)
    assert alignment(x, 5.0 * x).item() == pytest.approx(0.0, abs=1e-6)
    assert alignment(x, -x).item() == pytest.approx(4.0, rel=1e-5)
    assert alignment(x, -x, alpha=1.0).item() == pytest.approx(2.0, rel=1e-5)
    first, second = torch.eye(4)[:2], torch.eye(4)[2:]
    assert alignment(first, second).item() == pytest.approx(2.0, rel=1e-5)


# ---------------------------------------------------------------------- correlation dimension


def square(samples: int) -> Tensor:
    return torch.rand(samples, 2)


def cube(samples: int) -> Tensor:
    """Embedded in 64 dimensions."""
    return (torch.rand(samples, 3).double() @ orthogonal(64, 3).T).float()


def circle(samples: int) -> Tensor:
    angle = 2 * math.pi * torch.rand(samples)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.mark.parametrize(("points", "dimension"), [(square, 2), (cube, 3), (circle, 1)])
def test_the_correlation_dimension_of_known_sets(points: Callable[[int], Tensor], dimension: int) -> None:
    from skdim.id import CorrInt

    drawn = points(4096)
    found = correlation_dimension(drawn).item()
    assert found == pytest.approx(dimension, rel=0.05)
    assert found == pytest.approx(CorrInt(k1=10, k2=20).fit(drawn.numpy()).dimension_, rel=0.05)


def test_the_correlation_dimension_equals_a_naive_loop_with_natural_logarithms_on_both_sides() -> None:
    import numpy as np

    points = torch.randn(200, 3).double()
    distances = sorted(float((points[i] - points[j]).norm()) for i in range(200) for j in range(i))
    lowest, highest = distances[round(0.01 * len(distances)) - 1], distances[round(0.1 * len(distances)) - 1]
    eps = [lowest * (highest / lowest) ** (i / 9) for i in range(10)]
    share = [sum(d <= e * (1 + 1e-12) for d in distances) / len(distances) for e in eps]
    slope, _ = np.polyfit(np.log(eps), np.log(share), 1)
    found = correlation_dimension(points, low=0.01, high=0.1).item()
    assert found == pytest.approx(slope, rel=1e-3)
    assert 2.0 < found < 3.5  # with log10 on one side it would be 2.3 times this


def test_the_correlation_dimension_sees_neither_scale_nor_rotation_nor_order() -> None:
    points = cube(300).double()
    expected = correlation_dimension(points).item()
    assert correlation_dimension(1e-3 * points + 7.0).item() == pytest.approx(expected, rel=1e-6)
    assert correlation_dimension(points @ orthogonal(64, 64)).item() == pytest.approx(expected, rel=1e-6)
    assert correlation_dimension(points[torch.randperm(300)]).item() == pytest.approx(expected, rel=1e-6)


def test_the_correlation_dimension_of_degenerate_sets_is_a_number() -> None:
    assert correlation_dimension(torch.ones(50, 4)).item() == 0.0  # a point
    assert correlation_dimension(torch.randn(1, 4)).item() == 0.0
    assert correlation_dimension(torch.eye(20)).item() == math.inf  # all pairs equally far
    assert math.isfinite(correlation_dimension(torch.cat([torch.ones(90, 2), torch.rand(10, 2)])).item())


# ---------------------------------------------------------------------- attention, places, encoders


def test_attention_entropy_of_one_token_is_zero_and_of_all_the_logarithm_of_their_number() -> None:
    one = F.one_hot(torch.randint(7, (2, 3, 5)), 7).float()
    assert attention_entropy(one).tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(attention_entropy(torch.full((2, 3, 5, 7), 1 / 7)), torch.full((3,), math.log(7)))


def test_attention_entropy_of_each_head_equals_a_naive_loop() -> None:
    maps = torch.randn(2, 3, 4, 4).softmax(dim=-1)
    for head, found in enumerate(attention_entropy(maps).tolist()):
        rows = maps[:, head].reshape(-1, 4).tolist()
        assert found == pytest.approx(-sum(p * math.log(p) for row in rows for p in row) / len(rows), rel=1e-5)


def test_content_is_what_differs_between_inputs_at_the_same_place() -> None:
    place, image = torch.randn(1, 40, 6), torch.randn(400, 1, 6)
    assert content_share(place.expand(9, -1, -1)).item() == pytest.approx(0.0, abs=1e-6)
    assert content_share(image.expand(-1, 40, -1)).item() == pytest.approx(1.0)
    assert content_share(torch.ones(4, 5, 6)).item() == 0.0
    mixed = content_share(3.0 * image + torch.randn(1, 4000, 6)).item()
    assert mixed == pytest.approx(0.9, abs=0.02)  # variance 9 of 10


def test_the_relative_distance_is_that_of_the_norms() -> None:
    x = torch.randn(4, 5)
    assert relative_distance(1.5 * x, x).item() == pytest.approx(0.5)
    assert relative_distance(x, x).item() == 0.0
    assert math.isfinite(relative_distance(x, torch.zeros(4, 5)).item())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("measure", [metrics.rankme, metrics.alpha_req, metrics.correlation_dimension])
def test_features_that_are_not_finite_are_named_before_an_eigenvalue_routine_fails(measure: Any, value: float) -> None:
    features = torch.randn(20, 4)
    features[3, 1] = value
    with pytest.raises(metrics.NotFinite, match="features are not finite: 1 of 80 values"):
        measure(features)
    with pytest.raises(metrics.NotFinite, match="1 of 80"):
        metrics.lidar(features.view(10, 2, 4))

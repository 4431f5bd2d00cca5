from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, norm, sem, t

from jepa_lightning.evaluation.intervals import interval, student, wilson


@pytest.mark.parametrize(("right", "samples"), [(0, 10), (1, 10), (5, 10), (10, 10), (374, 1000), (1, 1), (0, 1)])
def test_the_interval_of_one_accuracy_equals_scipys(right: int, samples: int) -> None:
    found, expected = wilson(right / samples, samples), binomtest(right, samples).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.mean == right / samples
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_the_interval_of_one_accuracy_by_hand() -> None:
    z = norm.ppf(0.975)
    low = (0.5 + z**2 / 200 - z * math.sqrt(0.25 / 100 + z**2 / 40000)) / (1 + z**2 / 100)
    assert wilson(0.5, 100).low == pytest.approx(low)
    assert wilson(0.5, 100).high == pytest.approx(1 - low)


@pytest.mark.parametrize("values", [[0.1, 0.2], [0.5, 0.6, 0.55, 0.7], [0.3] * 3])
def test_the_interval_of_several_equals_scipys(values: list[float]) -> None:
    found, mean = student(values), sum(values) / len(values)
    half = t.ppf(0.975, len(values) - 1) * sem(values)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))


def test_the_interval_of_two_values_by_hand() -> None:
    found = student([0.0, 1.0])  # t(0.975, 1) = 12.706, standard error 0.5
    assert found.high == pytest.approx(0.5 + 12.7062 * 0.5, abs=1e-4)


def test_one_run_is_judged_by_its_samples_and_several_by_their_scatter() -> None:
    assert interval([0.25], 40) == wilson(0.25, 40)
    assert interval([0.25, 0.35], 40) == student([0.25, 0.35])


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        wilson(0.0, 0)
    with pytest.raises(ValueError, match="at least two values, got 1"):
        student([0.5])

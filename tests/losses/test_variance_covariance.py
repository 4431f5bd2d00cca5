from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa_lightning.losses import VarianceCovariance, covariance, variance


def naive_covariances(z: Tensor) -> Tensor:
    means = [sum(z[n, d] for n in range(len(z))) / len(z) for d in range(z.shape[1])]
    return torch.stack(
        [
            torch.stack(
                [
                    sum((z[n, i] - means[i]) * (z[n, j] - means[j]) for n in range(len(z))) / (len(z) - 1)
                    for j in range(z.shape[1])
                ]
            )
            for i in range(z.shape[1])
        ]
    )


def naive(z: Tensor, std: float = 1.0, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """The plain formulas of VICReg."""
    matrix, dim = naive_covariances(z), z.shape[1]
    hinges = [torch.clamp(std - (matrix[d, d] + eps).sqrt(), min=0) for d in range(dim)]
    others = [matrix[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j]
    return torch.stack(hinges).mean(), torch.stack(others).sum() / dim


@pytest.mark.parametrize("std", [1.0, 4.0])
def test_both_terms_equal_the_plain_formula_also_in_gradient(std: float) -> None:
    z = (torch.randn(6, 4, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1.0, 3.0])).requires_grad_()
    for fast, slow in zip((variance(z, std), covariance(z)), naive(z, std), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
        gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in (fast, slow)]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_the_variance_is_unbiased_as_that_of_pytorch() -> None:
    z = 0.5 * torch.randn(10, 3)
    expected = (1.0 - (z.var(dim=0) + 1e-4).sqrt()).clamp_min(0).mean()
    torch.testing.assert_close(variance(z), expected)


def test_spread_out_features_that_are_not_correlated_cost_nothing() -> None:
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert variance(z).item() == 0.0
    assert covariance(z).item() == pytest.approx(0.0, abs=1e-12)


def test_the_variances_are_no_covariances() -> None:
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert covariance(100 * z).item() == pytest.approx(0.0, abs=1e-6)
    assert covariance(torch.cat([z, z[:, :1]], dim=1)).item() == pytest.approx(2 * (4 / 3) ** 2 / 3)


def test_at_a_total_collapse_the_gradient_is_exactly_zero_and_near_it_is_not() -> None:
    z = torch.ones(8, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(VarianceCovariance()(z), z)
    assert torch.equal(gradient, torch.zeros_like(z))
    z = (1 + 1e-2 * torch.randn(8, 5)).requires_grad_()
    (gradient,) = torch.autograd.grad(VarianceCovariance()(z), z)
    assert gradient.norm().item() > 1


def test_the_terms_do_not_change_if_all_features_are_moved() -> None:
    z = torch.randn(8, 5)
    torch.testing.assert_close(variance(z + 3), variance(z), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(covariance(z + 3), covariance(z), rtol=1e-4, atol=1e-6)


def test_rotating_the_features_keeps_all_squares_of_the_covariance_matrix_together() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    z = torch.randn(9, 5, dtype=torch.float64) * torch.arange(1, 6)

    def squares(x: Tensor) -> Tensor:
        return 5 * covariance(x) + x.var(dim=0).square().sum()

    torch.testing.assert_close(squares(z @ rotation), squares(z))


def test_sets_are_looked_at_one_by_one() -> None:
    z, term = 0.5 * torch.randn(3, 2, 6, 4), VarianceCovariance(2.0, 3.0)
    alone = torch.stack([term(part) for part in z.flatten(0, 1)])
    torch.testing.assert_close(term(z), alone.mean())


def test_the_sum_has_the_weights() -> None:
    z = 0.5 * torch.randn(6, 4)
    term = VarianceCovariance(variance_weight=7.0, covariance_weight=0.5, std=2.0, eps=1e-3)
    torch.testing.assert_close(term(z), 7.0 * variance(z, 2.0, 1e-3) + 0.5 * covariance(z))
    terms = term.terms(z, step=3)
    assert {name: weight for name, (weight, _) in terms.items()} == {"variance_hinge": 7.0, "covariance": 0.5}


def test_one_sample_has_no_variance_but_finite_terms() -> None:
    term = VarianceCovariance()
    assert torch.isfinite(term(torch.randn(1, 4)))
    assert variance(torch.randn(1, 4)).item() == pytest.approx(1 - 1e-2)


def test_half_precision_is_computed_in_single_precision() -> None:
    z, term = torch.randn(16, 4).bfloat16(), VarianceCovariance()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, term(z.float()))

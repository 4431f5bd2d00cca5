from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_lightning.losses import Regularizer, SIGReg

FLOOR = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)


def naive(z: Tensor, slices: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """Slice by slice and knot by knot, by PyTorch's own trapezoids over the whole line, with plain autograd."""
    statistics = []
    for a in slices.T:
        u, values = z @ a, []
        for t in torch.linspace(-t_max, t_max, 2 * knots - 1, dtype=z.dtype):
            gaussian = torch.exp(-t * t / 2)
            error = ((t * u).cos().mean() - gaussian) ** 2 + (t * u).sin().mean() ** 2
            values.append(error * gaussian)
        statistics.append(len(z) * torch.trapezoid(torch.stack(values), dx=t_max / (knots - 1)))
    return torch.stack(statistics)


@pytest.mark.parametrize(("samples", "dim", "knots", "t_max"), [(7, 5, 17, 3.0), (12, 3, 5, 2.0), (1, 4, 2, 3.0)])
def test_value_and_gradient_equal_those_of_a_loop(samples: int, dim: int, knots: int, t_max: float) -> None:
    term = SIGReg(num_slices=6, knots=knots, t_max=t_max)
    z = (1.7 * torch.randn(samples, dim, dtype=torch.float64) + 0.3).requires_grad_()
    slices = term.slices(dim, step=4).double()
    fast, slow = term.statistic(z, slices), naive(z, slices, knots, t_max)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    weight = torch.randn(6, dtype=torch.float64)
    for a, b in zip(*[torch.autograd.grad((weight * s).sum(), z) for s in (fast, slow)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_the_floor_is_that_of_a_gaussian_sample_at_every_size() -> None:
    term = SIGReg()
    for samples in (64, 128, 512):
        found = [term(torch.randn(samples, 64), step).item() for step in range(8)]
        assert sum(found) / 8 == pytest.approx(FLOOR, rel=0.08), samples


@pytest.mark.parametrize("samples", [128, 256])
def test_a_total_collapse_has_the_golden_value_and_no_gradient(samples: int) -> None:
    z = torch.zeros(samples, 64, requires_grad=True)
    value = SIGReg()(z)
    assert value.item() / samples == pytest.approx(0.402, abs=5e-4)
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.equal(gradient, torch.zeros_like(z))


@pytest.mark.parametrize(("std", "expected"), [(0.5, 19.9), (2.0, 32.1)])
def test_a_wrong_scale_has_the_golden_value(std: float, expected: float) -> None:
    values = [SIGReg()(std * torch.randn(128, 64), step).item() for step in range(4)]
    assert sum(values) / 4 == pytest.approx(expected, rel=0.03)


def test_near_a_collapse_the_gradient_is_smaller_than_at_the_target() -> None:
    def gradient(std: float) -> float:
        z = (std * torch.randn(128, 64)).requires_grad_()
        return torch.autograd.grad(SIGReg()(z), z)[0].norm().item()

    assert 0 < gradient(1e-3) < 0.1 * gradient(1.0)


def test_gradient_descent_makes_a_gaussian_of_what_is_none() -> None:
    z = (0.2 * torch.rand(64, 4) + torch.arange(4)).requires_grad_()
    term, optimizer = SIGReg(num_slices=64), torch.optim.Adam([z], lr=0.1)
    before = term(z).item()
    for step in range(150):
        optimizer.zero_grad()
        term(z, step).backward()
        optimizer.step()
    assert before > 10
    assert term(z, 1000).item() < 1.0  # below the floor: a Gaussian without a sample's noise
    assert z.mean(dim=0).abs().max().item() < 0.2
    torch.testing.assert_close(z.std(dim=0), torch.ones(4), rtol=0, atol=0.2)


def test_rotated_features_in_rotated_slices_have_the_same_statistic() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    z, term = torch.randn(20, 8) * torch.arange(1, 9), SIGReg(num_slices=16)
    slices = term.slices(8)
    torch.testing.assert_close(term.statistic(z @ rotation, rotation.T @ slices), term.statistic(z, slices))


def test_rotating_the_features_only_changes_the_noise_of_the_slices() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    z = torch.randn(64, 8) * torch.linspace(0.2, 2.0, 8)
    term = SIGReg(num_slices=4096)
    assert term(z @ rotation).item() == pytest.approx(term(z).item(), rel=0.03)


def test_sets_are_looked_at_one_by_one() -> None:
    z, term = torch.randn(3, 2, 16, 8), SIGReg(num_slices=32)
    alone = torch.stack([term(part, step=5) for part in z.flatten(0, 1)])
    torch.testing.assert_close(term(z, step=5), alone.mean())


def test_views_of_a_sample_thrown_together_look_less_gaussian_than_they_are() -> None:
    views = torch.randn(1, 128, 64) + 0.3 * torch.randn(8, 128, 64)
    views = views / views.std()
    assert SIGReg(256)(views.flatten(0, 1)).item() > 3 * SIGReg(256)(views).item()


def test_the_slices_follow_from_the_step_alone() -> None:
    first = SIGReg().slices(16, 7)
    torch.rand(5)
    assert torch.equal(SIGReg().slices(16, 7), first)
    assert not torch.equal(SIGReg().slices(16, 8), first)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(1024))
    before = torch.get_rng_state()
    SIGReg()(torch.zeros(4, 16), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_slices_favour_no_direction() -> None:
    slices = SIGReg(num_slices=20_000).slices(3)
    torch.testing.assert_close(slices @ slices.T / 20_000, torch.eye(3) / 3, rtol=0, atol=0.01)


def test_nothing_is_saved_and_nothing_is_trained() -> None:
    assert not list(SIGReg().state_dict())
    assert not list(SIGReg().parameters())


def test_half_precision_is_computed_in_single_precision() -> None:
    z, term = torch.randn(32, 8).bfloat16(), SIGReg(num_slices=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, term(z.float()))


def test_its_term_has_its_weight() -> None:
    z, term = torch.randn(16, 8), SIGReg(num_slices=8, weight=0.3)
    assert isinstance(term, Regularizer)
    weight, value = term.terms(z, step=2)["sigreg"]
    assert weight == 0.3
    assert torch.equal(value, term(z, 2))


@pytest.mark.parametrize("options", [{"num_slices": 0}, {"knots": 1}, {"t_max": 0.0}])
def test_impossible_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="num_slices of at least 1, knots of at least 2"):
        SIGReg(**options)

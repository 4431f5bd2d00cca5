from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jepa_lightning.evaluation.depth import DepthHead, DepthSums, depth_error, depth_sums, scale_invariant
from jepa_lightning.evaluation.segmentation import HeadFit, Recipe


def fitted(tokens: Tensor, depth: Tensor, recipe: Recipe) -> DepthHead:
    fit = HeadFit(lambda: DepthHead(tokens.shape[-1], 0.5, 6.0), depth_error, recipe, clip=35.0)
    for step in range(recipe.steps):
        chosen = torch.arange(recipe.batch_size * step, recipe.batch_size * (step + 1)) % len(tokens)
        fit.step(tokens[chosen], depth[chosen])
    return fit.head.eval()


def test_rmse_and_delta1_are_over_all_known_pixels_and_batches_add_up() -> None:
    depth = torch.tensor([[1.0, 2.0, 0.0, 4.0], [8.0, -1.0, 2.0, 1.0]])
    predicted = torch.tensor([[1.2, 2.6, 9.0, 4.0], [6.0, 5.0, 1.7, 1.3]])
    found = depth_sums(predicted[:1], depth[:1]) + depth_sums(predicted[1:], depth[1:])
    errors = [0.2, 0.6, 0.0, -2.0, -0.3, 0.3]
    assert found.pixels == 6
    assert found.rmse == pytest.approx(math.sqrt(sum(e**2 for e in errors) / 6), rel=1e-6)
    assert found.delta1 == pytest.approx(3 / 6)  # 1.2, 4 and 1.7 are within a factor of 1.25
    nothing = depth_sums(torch.ones(2), torch.zeros(2))
    assert nothing == DepthSums(0.0, 0, 0)
    assert math.isnan(nothing.rmse)
    assert math.isnan(nothing.delta1)


def test_the_loss_is_that_of_the_equation() -> None:
    predicted, depth = torch.rand(3, 4) + 0.5, torch.rand(3, 4) + 0.5
    depth[0, :2] = 0
    g = [
        math.log(p) - math.log(d)
        for p, d in zip(predicted.flatten().tolist(), depth.flatten().tolist(), strict=True)
        if d
    ]
    mean = sum(g) / len(g)
    variance = sum((x - mean) ** 2 for x in g) / len(g)
    assert float(scale_invariant(predicted, depth)) == pytest.approx(math.sqrt(variance + 0.15 * mean**2), abs=1e-5)


def test_a_depth_is_the_mean_of_the_bins_by_their_weights() -> None:
    head, tokens = DepthHead(4, 1.0, 3.0, bins=3).eval(), torch.randn(1, 2, 2, 4)
    weights = head.head(tokens).relu() + 0.1
    expected = (weights * torch.tensor([1.0, 2.0, 3.0])).sum(dim=-1) / weights.sum(dim=-1)
    torch.testing.assert_close(head(tokens, (2, 2)), expected)
    with pytest.raises(ValueError, match="0 < nearest < farthest, got 3 and 1"):
        DepthHead(4, 3, 1)


def test_a_head_reads_the_depth_that_tokens_show() -> None:
    generator = torch.Generator().manual_seed(0)
    near = 1 + 4 * torch.rand(32, 4, 4, generator=generator)
    tokens = torch.stack([near, near.square(), torch.randn(32, 4, 4, generator=generator)], dim=-1)
    depth = near.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    head = fitted(tokens[:24], depth[:24], Recipe(steps=400, lr=3e-2))
    found = depth_sums(head(tokens[24:], (16, 16))[:, 2::4, 2::4].detach(), depth[24:, 2::4, 2::4])
    constant = depth_sums(torch.full_like(depth[24:], float(depth.mean())), depth[24:])
    assert found.rmse < 0.5 * constant.rmse
    assert found.delta1 > constant.delta1


def test_batches_without_a_known_depth_are_left_out() -> None:
    head = fitted(torch.randn(4, 2, 2, 3), torch.zeros(4, 4, 4), Recipe(steps=3))
    assert all(parameter.isfinite().all() for parameter in head.parameters())

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_lightning.evaluation.correspondence import matched_points, within


def test_points_go_to_the_middle_of_the_token_that_is_most_alike() -> None:
    tokens = torch.randn(4, 5, 16)
    moved = tokens.roll((1, 2), dims=(0, 1))
    points = torch.tensor([[4.0, 4.0], [28.0, 20.0], [36.0, 28.0]])  # middles of tokens of 8 pixels: x, y
    found = matched_points(tokens, moved, points, (32, 40), (64, 80))
    assert found.tolist() == [[2 * ((x + 16) % 40), 2 * ((y + 8) % 32)] for x, y in points.tolist()]


def test_between_middles_tokens_are_interpolated_as_by_hand() -> None:
    tokens, other = torch.randn(2, 2, 8), torch.randn(6, 6, 8)
    point = torch.tensor([[3.0, 2.5]])  # in 8 x 8 pixels: middles at 2 and 6
    x, y = 0.25, 0.125
    mixed = (1 - y) * ((1 - x) * tokens[0, 0] + x * tokens[0, 1]) + y * ((1 - x) * tokens[1, 0] + x * tokens[1, 1])
    best = int(F.cosine_similarity(other.flatten(0, 1), mixed, dim=1).argmax())
    found = matched_points(tokens, other, point, (8, 8), (6, 6))
    assert found.tolist() == [[best % 6 + 0.5, best // 6 + 0.5]]


@pytest.mark.parametrize(("alpha", "expected"), [(0.05, [True, False, False]), (0.1, [True, True, False])])
def test_a_point_is_found_within_a_fraction_of_the_longer_side(alpha: float, expected: list[bool]) -> None:
    true = torch.tensor([[10.0, 10.0]]).expand(3, -1)
    found = true + torch.tensor([[0.0, 0.0], [6.0, 8.0], [10.0, 1.0]])
    assert within(found, true, (50, 100), alpha).tolist() == expected

from __future__ import annotations

import pytest
import torch

from jepa_lightning.callbacks.measures import (
    CELL,
    ROWS_FOR_DIMENSION,
    count_tokens,
    coverage,
    describe,
    nearest_context,
    pooled,
    some_rows,
    targets_of,
)
from jepa_lightning.masking import TokenMasks


def test_rows_are_drawn_without_padding_without_repetition_and_the_same_for_a_seed() -> None:
    tokens = torch.arange(12.0).view(2, 6, 1)
    index = torch.tensor([[0, 1, 2, 3, -1, -1], [5, 4, 3, 2, 1, -1]])
    rows = some_rows(tokens, index, 99, seed=3)
    assert sorted(rows.flatten().tolist()) == [0, 1, 2, 3, 6, 7, 8, 9, 10]
    few = some_rows(tokens, index, 4, seed=3)
    assert torch.equal(few, some_rows(tokens, index, 4, seed=3))
    assert len(few.unique()) == 4
    assert not torch.equal(few, some_rows(tokens, index, 4, seed=4))


def test_drawing_rows_leaves_the_random_numbers_of_training_alone_and_copies() -> None:
    state, tokens = torch.get_rng_state(), torch.zeros(2, 3, 4)
    rows = some_rows(tokens, None, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    rows += 1.0
    assert float(tokens.sum()) == 0.0


def test_pooling_leaves_padding_out() -> None:
    tokens = torch.randn(2, 3, 4, 5)
    index = torch.randint(9, (2, 3, 4))
    torch.testing.assert_close(pooled(tokens, index), tokens.mean(dim=(1, 2)))
    torch.testing.assert_close(pooled(tokens, None), tokens.mean(dim=(1, 2)))
    index[1, 2] = -1
    torch.testing.assert_close(pooled(tokens, index)[1], tokens[1, :2].mean(dim=(0, 1)))


def test_the_nearest_context_patch_is_the_nearest_on_the_grid() -> None:
    grid = (2, 3, 4)
    order = torch.stack([torch.randperm(24) for _ in range(5)])
    masks = TokenMasks(order[:, :6], order[:, 6:18].reshape(5, 3, 4))
    features = torch.randn(5, 24, 2)
    found = nearest_context(features, masks, grid)
    for b in range(5):
        for m in range(3):
            for k in range(4):
                t, c = int(masks.targets[b, m, k]), masks.context[b].tolist()
                distance = {i: sum((p - q) ** 2 for p, q in zip(place(t), place(i), strict=True)) for i in c}
                best = [i for i in c if distance[i] == min(distance.values())]
                assert any(torch.equal(found[b, m, k], features[b, i]) for i in best)


def place(token: int) -> tuple[int, int, int]:
    return token // 12, token % 12 // 4, token % 4


def test_padding_is_never_the_nearest_patch() -> None:
    masks = TokenMasks(torch.tensor([[15, -1]]), torch.tensor([[[0, 1, -1]]]))
    features = torch.randn(1, 16, 2)
    found = nearest_context(features, masks, (1, 4, 4))
    torch.testing.assert_close(found[0, 0, :2], features[0, [15, 15]])
    assert targets_of(features, masks).shape == (1, 1, 3, 2)


def test_a_description_has_what_the_number_of_rows_allows() -> None:
    assert describe("x", torch.randn(5, 4)) == {}
    assert "x_correlation_dimension" not in describe("x", torch.randn(ROWS_FOR_DIMENSION - 1, 4))
    full = describe("x", torch.randn(ROWS_FOR_DIMENSION, 4) * torch.tensor([1.0, 2.0, 3.0, 0.1]))
    assert full["x_std"] == pytest.approx(6.1 / 4, rel=0.1)
    assert full["x_std_min"] == pytest.approx(0.1, rel=0.2)
    assert 1 < full["x_rankme"] < 4
    assert 1 < full["x_correlation_dimension"] < 4


def test_tokens_are_counted_for_each_family_without_padding() -> None:
    counts = torch.zeros(4, 4)
    first = TokenMasks(torch.tensor([[0, 1], [0, -1]]), torch.tensor([[[2], [2]], [[3], [-1]]]))
    second = TokenMasks(torch.tensor([[3], [3]]), torch.tensor([[[0, 1]], [[0, 2]]]))
    for _ in range(2):
        count_tokens(counts, (first, second))
    assert counts.tolist() == [[4, 2, 0, 0], [0, 0, 4, 2], [0, 0, 0, 4], [4, 2, 2, 0]]


def test_the_picture_of_coverage_has_a_column_for_each_step_in_time_and_a_row_for_each_part() -> None:
    counts = torch.tensor([[0.0, 4.0, 2.0, 4.0, 0, 0, 0, 0], [1.0] * 8])  # grid 2 x 2 x 2
    picture = coverage(counts, (2, 2, 2))
    side = 2 * CELL
    assert picture.shape == (3, 2 * (side + 4) + 4, 2 * (side + 4) + 4)
    shown = [float(picture[0, 4 + CELL * y + 1, 4 + CELL * x + 1]) for y in range(2) for x in range(2)]
    assert shown == [0.0, 1.0, 0.5, 1.0]
    assert float(picture[0, 5, 4 + side + 4 + 1]) == 0.0  # the second step in time
    assert float(picture[0, 4 + side + 4 + 1, 5]) == 1.0  # the targets

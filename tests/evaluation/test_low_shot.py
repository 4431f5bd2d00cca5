from __future__ import annotations

import pytest
import torch

from jepa_lightning.evaluation.low_shot import fraction, shots

Y = torch.tensor([0] * 50 + [1] * 200 + [4] * 10)[torch.randperm(260, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("count", [1, 5, 10])
def test_every_class_has_as_many_labels(count: int) -> None:
    chosen = shots(Y, count, seed=0)
    assert torch.bincount(Y[chosen]).tolist() == [count, count, 0, 0, count]
    assert len(chosen.unique()) == len(chosen)
    assert (chosen.diff() > 0).all()


def test_a_draw_follows_from_the_seed_and_differs_between_seeds() -> None:
    torch.rand(3)
    assert torch.equal(shots(Y, 5, 1), shots(Y, 5, 1))
    assert torch.equal(fraction(Y, 0.1, 1), fraction(Y, 0.1, 1))
    draws = {tuple(shots(Y, 5, seed).tolist()) for seed in range(20)}
    assert len(draws) == 20


def test_every_sample_is_drawn_as_often_as_the_others() -> None:
    hits = torch.zeros(len(Y))
    for seed in range(600):
        hits[shots(Y, 5, seed)] += 1
    for label, expected in ((0, 60.0), (4, 300.0)):
        of_class = hits[label == Y]
        assert of_class.mean() == expected
        assert of_class.std() < 2 * (expected * (1 - expected / 600)) ** 0.5


def test_few_labels_are_among_the_more() -> None:
    assert set(shots(Y, 1, 3).tolist()) < set(shots(Y, 5, 3).tolist()) < set(shots(Y, 10, 3).tolist())


def test_a_share_is_taken_of_each_class_and_no_class_is_lost() -> None:
    assert torch.bincount(Y[fraction(Y, 0.01, 0)]).tolist() == [1, 2, 0, 0, 1]
    assert torch.bincount(Y[fraction(Y, 0.5, 0)]).tolist() == [25, 100, 0, 0, 5]
    assert len(fraction(Y, 1.0, 0)) == len(Y)


def test_too_many_and_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="class 4 has 10 labels in this part of the training split, 11 are needed"):
        shots(Y, 11, 0)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"above 0 and at most 1, got {share}"):
            fraction(Y, share, 0)

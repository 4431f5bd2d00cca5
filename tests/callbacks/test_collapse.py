from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa_lightning.callbacks.collapse import SIGNS, of_predictions, seen, spread_of_rows
from jepa_lightning.masking import TokenMasks, gather_tokens

PLACES = 12


def masks(batch: int = 6) -> TokenMasks:
    order = torch.stack([torch.randperm(PLACES) for _ in range(batch)])
    return TokenMasks(order[:, :4], order[:, 4:10].reshape(batch, 2, 3))


def measured(predicted: Tensor, chosen: TokenMasks, context: Tensor | None = None) -> tuple[float, float, float]:
    target = torch.randn(*chosen.targets.shape, 5)
    context = torch.randn(*chosen.context.shape, 5) if context is None else context
    copy, place, content = of_predictions(context, predicted, target, chosen, PLACES).tolist()
    return copy, place, content


def test_independent_predictions_vary_as_the_targets_do() -> None:
    chosen = masks(200)
    copy, place, content = measured(torch.randn(*chosen.targets.shape, 5), chosen)
    assert copy > 0.1
    assert place == pytest.approx(1.0, rel=0.15)
    assert content == pytest.approx(1.0, rel=0.15)


def test_copies_of_context_tokens_are_recognised_wherever_they_go() -> None:
    chosen, context = masks(), torch.randn(6, 4, 5)
    predicted = gather_tokens(context, torch.randint(4, (6, 2, 3)))
    copy, place, content = measured(predicted, chosen, context)
    assert copy < 1e-6
    assert place > 0.1
    assert content > 0.1


def test_the_same_prediction_for_all_places_of_an_input_is_recognised() -> None:
    chosen = masks()
    copy, place, content = measured(torch.randn(6, 1, 1, 5).expand(-1, 2, 3, -1), chosen)
    assert place < 1e-9
    assert min(copy, content) > 0.1


def test_the_same_prediction_for_all_inputs_is_recognised_although_their_targets_lie_elsewhere() -> None:
    chosen = masks()
    of_places = torch.randn(PLACES, 5)
    copy, place, content = measured(of_places[chosen.targets], chosen)
    assert content < 1e-9
    assert min(copy, place) > 0.05


def test_padding_counts_nowhere() -> None:
    chosen = masks()
    predicted, target = torch.randn(2, 6, 2, 3, 5)
    context = torch.randn(6, 4, 5)
    short = TokenMasks(chosen.context[:, :3], chosen.targets[:, :, :2])
    expected = of_predictions(context[:, :3], predicted[:, :, :2], target[:, :, :2], short, PLACES)
    padded = TokenMasks(chosen.context.clone(), chosen.targets.clone())
    padded.context[:, 3], padded.targets[:, :, 2] = -1, -1
    context[:, 3], predicted[:, :, 2], target[:, :, 2] = predicted[:, 0, 0], 100.0, -100.0
    found = of_predictions(context, predicted, target, padded, PLACES)
    torch.testing.assert_close(found[1:], expected[1:])
    assert float(found[0]) > 0.0  # not a copy of what stands in padding


def test_what_has_nothing_to_vary_with_is_no_sign() -> None:
    one = TokenMasks(torch.tensor([[0, 1]]), torch.tensor([[[5]]]))
    _, place, content = measured(torch.randn(1, 1, 1, 5), one)
    assert (place, content) == (1.0, 1.0)


def test_spread_and_rank_of_rows() -> None:
    rows = torch.randn(500, 8)
    assert spread_of_rows("target", rows)["target_std"] == pytest.approx(1.0, rel=0.05)
    assert spread_of_rows("target", rows)["target_rank"] == pytest.approx(8.0, rel=0.05)
    narrow = spread_of_rows("target", 100.0 + rows[:, :2] @ torch.randn(2, 8))
    assert narrow["target_rank"] < 2.01  # centred: a common mean is no dimension


def test_each_sign_is_seen_below_its_limit_and_not_above() -> None:
    assert len({sign.short for sign in SIGNS}) == len(SIGNS)
    for sign in SIGNS:
        best = {sign.measure: 10.0}
        limit = sign.limit * (10.0 if sign.relative else 1.0)
        fast = {"pace": sign.pace}
        assert sign in seen({sign.measure: 0.99 * limit, **fast}, best)
        assert sign not in seen({sign.measure: 1.01 * limit, **fast}, best)
        assert sign in seen({sign.measure: float("nan"), **fast}, best)
        assert sign not in seen({}, {})
        if sign.pace:
            assert sign not in seen({sign.measure: 0.99 * limit, "pace": 0.9 * sign.pace}, best)
        assert sign.meaning.format(now=1.0, best=2.0)
        assert "--model" in sign.first

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from jepa_lightning.masking import RandomTokens

Golden = Callable[[str], dict[str, Any]]


def test_compat_gives_the_official_masks_bit_for_bit(golden: Golden) -> None:
    expected = golden("masks.json")["ijepa_random"]
    sampler = RandomTokens(14, ratio=tuple(expected["config"]["ratio"]), compat=True)
    torch.manual_seed(expected["torch_manual_seed"])
    for call in expected["calls"]:
        (masks,) = sampler.sample(expected["batch_size"])
        assert (masks.context.shape[1], masks.targets.shape[2]) == (call["K_context"], call["K_target"])
        assert masks.context[:, :8].tolist() == call["context_first8"]
        assert masks.targets[:, 0, :8].tolist() == call["target_first8"]
        assert masks.context.sum(dim=1).tolist() == call["context_index_sums"]
        assert masks.targets.sum(dim=(1, 2)).tolist() == call["target_index_sums"]


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("grid", [6, (4, 9), (1, 9, 4)])
def test_every_token_is_either_context_or_target(grid: Any, compat: bool) -> None:
    for seed in range(5):
        (masks,) = RandomTokens(grid, compat=compat).sample(4, torch.Generator().manual_seed(seed))
        assert masks.targets.shape[1] == 1
        both = torch.cat([masks.context, masks.targets[:, 0]], dim=1)
        assert torch.equal(both.sort(dim=1).values, torch.arange(36).expand(4, -1))


def test_ours_are_in_raster_order() -> None:
    (masks,) = RandomTokens(6).sample(4)
    assert torch.equal(masks.context, masks.context.sort(dim=1).values)
    assert torch.equal(masks.targets, masks.targets.sort(dim=2).values)


@pytest.mark.parametrize("compat", [False, True])
def test_the_share_of_targets_stays_in_its_range_and_fills_it(compat: bool) -> None:
    sampler = RandomTokens(20, ratio=(0.3, 0.8), compat=compat)
    shares = torch.tensor([sampler.sample(1)[0].targets.shape[2] / 400 for _ in range(100)])
    assert 0.3 <= shares.min() < 0.35
    assert 0.75 < shares.max() <= 0.8025


def test_every_token_is_context_equally_often() -> None:
    sampler, counts = RandomTokens(4, ratio=(0.5, 0.5)), torch.zeros(16)
    for _ in range(20):
        counts += torch.bincount(sampler.sample(100)[0].context.flatten(), minlength=16)
    assert (counts / 2000 - 0.5).abs().max() < 0.06


def test_the_same_generator_seed_gives_the_same_masks() -> None:
    sampler = RandomTokens(6)
    first, again, other = (sampler.sample(4, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first.context, again.context)
    assert first.context.tolist() != other.context.tolist()


@pytest.mark.parametrize("ratio", [(0.0, 0.5), (0.5, 1.0), (0.5, 0.99)])
def test_a_ratio_that_leaves_no_context_or_no_target_is_refused(ratio: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="of 16 tokens leaves no context or no target"):
        RandomTokens(4, ratio=ratio)

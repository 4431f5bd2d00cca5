from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from jepa_lightning.masking import Causal, RandomTubes

Golden = Callable[[str], dict[str, Any]]


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- random tubes


def test_compat_gives_the_official_tubes_bit_for_bit(golden: Golden) -> None:
    expected = golden("masks.json")["vjepa_random_tube"]
    sampler = RandomTubes((8, 14, 14), expected["config"]["ratio"], compat=True)
    np.random.seed(expected["numpy_random_seed"])  # noqa: NPY002 (the official generator)
    (masks,) = sampler.sample(expected["batch_size"])
    call = expected["first_call"]
    for name, indices in (("context", masks.context), ("target", masks.targets.squeeze(1))):
        assert list(indices.shape) == call[f"{name}_shape"]
        assert indices.sum(dim=1).tolist() == call[f"{name}_index_sums"]
        assert indices[:, :8].tolist() == call[f"{name}_first8"]
        assert indices[:, -1].tolist() == call[f"{name}_last"]


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("grid", [(3, 4, 5), (1, 6, 6), 6, (4, 9)])
def test_the_same_places_are_hidden_in_all_frames_and_every_token_is_used_once(grid: Any, compat: bool) -> None:
    sampler = RandomTubes(grid, ratio=0.6, compat=compat)
    (masks,) = sampler.sample(4, generator())
    both = torch.cat([masks.context, masks.targets.squeeze(1)], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(sampler.steps * sampler.places).expand(4, -1))
    for indices in (masks.context, masks.targets.squeeze(1)):
        assert torch.equal(indices, indices.sort(dim=1).values)
        frames = indices.reshape(4, sampler.steps, -1)
        assert torch.equal(frames % sampler.places, frames[:, :1].expand_as(frames))
    assert masks.context.shape[1] == sampler.steps * int(sampler.places * 0.4)


@pytest.mark.parametrize("compat", [False, True])
def test_every_place_is_context_equally_often(compat: bool) -> None:
    sampler, counts, random = RandomTubes((2, 3, 3), ratio=0.6, compat=compat), torch.zeros(18), generator()
    for _ in range(15):
        counts += torch.bincount(sampler.sample(100, random)[0].context.flatten(), minlength=18)
    assert (counts / 1500 - 3 / 9).abs().max() < 0.06


@pytest.mark.parametrize("compat", [False, True])
def test_the_same_generator_seed_gives_the_same_tubes(compat: bool) -> None:
    sampler = RandomTubes((2, 6, 6), compat=compat)
    first, again, other = (sampler.sample(4, generator(s))[0] for s in (1, 1, 2))
    assert torch.equal(first.context, again.context)
    assert torch.equal(first.targets, again.targets)
    assert first.context.tolist() != other.context.tolist()


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 0.97, 1.0, 2.0])
def test_a_ratio_that_leaves_no_context_or_no_target_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"ratio {ratio} of the 16 places .*hides 1 to 15 of them"):
        RandomTubes((8, 4, 4), ratio)


# ---------------------------------------------------------------------- the future


@pytest.mark.parametrize(("keep", "steps"), [(0.5, 4), (0.375, 3), (0.75, 6), (0.125, 1), (0.875, 7)])
def test_the_first_time_steps_are_context_and_all_later_ones_targets(keep: float, steps: int) -> None:
    (masks,) = Causal((8, 2, 3), keep).sample(3)
    assert masks.context.tolist() == [list(range(6 * steps))] * 3
    assert masks.targets.tolist() == [[list(range(6 * steps, 48))]] * 3


def test_every_share_of_the_steps_gives_that_many_steps() -> None:
    for steps in range(2, 60):
        for kept in range(1, steps):
            assert Causal((steps, 1, 1), kept / steps).keep == kept


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.95, 1.0, -1.0])
def test_a_share_that_leaves_no_context_or_no_future_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=rf"keep {keep} of 8 time steps .*from 0.125 to 0.875"):
        Causal((8, 2, 3), keep)


@pytest.mark.parametrize("grid", [14, (14, 14), (1, 14, 14)])
def test_an_image_has_no_future(grid: Any) -> None:
    with pytest.raises(ValueError, match=r"of 1 time steps .*at least two time steps"):
        Causal(grid)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator

from jepa_lightning.masking import Blocks, MultiBlock3D, TokenMasks

Golden = Callable[[str], dict[str, Any]]

# The sizes of the small official runs: 4 time steps of 4x4 tokens.
SMALL_SHORT = Blocks(num_blocks=3, spatial_scale=(0.15, 0.15))
SMALL_LONG = Blocks(num_blocks=2, spatial_scale=(0.4, 0.4))
SMALL_PART = {"num_blocks": 2, "spatial_scale": (0.4, 0.4), "temporal_scale": (0.5, 0.5), "max_temporal_keep": 0.5}


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def blocks_of(config: dict[str, Any], **options: Any) -> Blocks:
    return Blocks(**{k: tuple(v) if isinstance(v, list) else v for k, v in {**config, **options}.items()})


def grid_of(case: dict[str, Any]) -> tuple[int, int, int]:
    side = case["crop_size"] // case["patch_size"]
    return case["frames"] // case["tubelet_size"], side, side


def check(masks: TokenMasks, expected: dict[str, Any]) -> None:
    for name, indices in (("context", masks.context), ("target", masks.targets.squeeze(1))):
        assert list(indices.shape) == expected[f"{name}_shape"]
        assert indices.sum(dim=1).tolist() == expected[f"{name}_index_sums"]
        assert indices[:, :8].tolist() == expected[f"{name}_first8"]
        assert indices[:, -1].tolist() == expected[f"{name}_last"]


@pytest.mark.parametrize("version", ["vjepa", "vjepa2"])
@pytest.mark.parametrize("case", range(2))
def test_compat_gives_the_official_masks_bit_for_bit(golden: Golden, version: str, case: int) -> None:
    expected = golden("masks.json")[f"{version}_multiblock3d_calls"][case]
    sampler = MultiBlock3D(grid_of(expected), [blocks_of(config) for config in expected["configs"]], compat=True)
    torch.manual_seed(expected["torch_manual_seed"])
    for call in expected["calls"]:
        for masks, family in zip(sampler.sample(expected["batch_size"]), call["generators"], strict=True):
            check(masks, family)


def test_the_default_families_are_the_official_ones(golden: Golden) -> None:
    expected = golden("masks.json")["vjepa_multiblock3d_calls"][0]
    assert MultiBlock3D(14).families == tuple(blocks_of(config) for config in expected["configs"])


@pytest.mark.parametrize("case", range(7))
def test_compat_gives_the_official_masks_with_every_option(golden: Golden, case: int) -> None:
    expected = golden("masks.json")["vjepa2_options"]
    option = expected["cases"][case]
    sampler = MultiBlock3D(grid_of(expected), [blocks_of(expected["config"], **option["option"])], compat=True)
    torch.manual_seed(expected["torch_manual_seed"])
    (masks,) = sampler.sample(expected["batch_size"])
    check(masks, option["first_call"])


def test_the_golden_masks_hold_a_case_for_each_option(golden: Golden) -> None:
    cases = golden("masks.json")["vjepa2_options"]["cases"]
    options = {option for case in cases for option in case["option"]}
    assert options == {"full_complement", "pred_full_complement", "inv_block", "max_keep"}


def test_compat_gives_the_official_masks_of_images(golden: Golden) -> None:
    expected = golden("masks.json")["vjepa2_1_image"]
    sampler = MultiBlock3D(grid_of(expected), [blocks_of(expected["config"])], compat=True)
    torch.manual_seed(expected["torch_manual_seed"])
    for call in expected["calls"]:
        (masks,) = sampler.sample(expected["batch_size"])
        check(masks, call)


@pytest.mark.parametrize("case", range(10))
def test_compat_gives_the_official_block_sizes(golden: Golden, case: int) -> None:
    expected = golden("masks.json")["vjepa_block_sizes"][case]
    steps, height, width = expected["grid_thw"]
    one_block = blocks_of(expected["config"], num_blocks=1)
    sampler = MultiBlock3D((steps, height, width), [one_block], compat=True)
    for counter, size in zip(expected["counters"], expected["block_thw"], strict=True):
        (masks,) = sampler.sample(1, step=counter)
        token = masks.targets.flatten()
        axes = (token // (height * width), token // width % height, token % width)
        assert [int(axis.max() - axis.min()) + 1 for axis in axes] == size
        assert len(token) == size[0] * size[1] * size[2]


def test_compat_gives_the_official_masks_of_a_small_run_in_full() -> None:
    torch.manual_seed(7)
    short, long = MultiBlock3D((4, 4, 4), [SMALL_SHORT, SMALL_LONG], compat=True).sample(3)
    assert short.targets.squeeze(1).tolist() == [
        [9, 10, 13, 14, 15, 25, 26, 29, 30, 31, 41, 42, 45, 46, 47, 57],
        [0, 1, 5, 6, 8, 9, 16, 17, 21, 22, 24, 25, 32, 33, 37, 38],
        [2, 3, 12, 13, 18, 19, 28, 29, 34, 35, 44, 45, 50, 51, 60, 61],
    ]
    assert long.context.tolist() == [
        [3, 7, 11, 12, 13, 14, 15, 19, 23, 27, 28, 29, 30, 31, 35, 39],
        [0, 4, 8, 12, 13, 14, 15, 16, 20, 24, 28, 29, 30, 31, 32, 36],
        [3, 7, 8, 12, 19, 23, 24, 28, 35, 39, 40, 44, 51, 55, 56, 60],
    ]


def test_compat_makes_official_targets_of_all_late_frames() -> None:
    torch.manual_seed(3)
    (masks,) = MultiBlock3D((4, 4, 4), [Blocks(**SMALL_PART, pred_full_complement=True)], compat=True).sample(3)
    assert masks.context.tolist() == [
        [3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 19, 23, 27, 28, 29, 30, 31],
        [0, 1, 2, 3, 7, 11, 12, 13, 14, 15, 16, 27, 28, 29, 30, 31, 63],
        [0, 1, 2, 3, 4, 8, 12, 16, 17, 18, 19, 20, 24, 28, 61, 62, 63],
    ]


@pytest.mark.parametrize(
    ("grid", "kept"),
    [  # mean tokens over 200 batches of 24, measured with the official code
        ((8, 14, 14), (366, 753, 105, 1098)),
        ((8, 16, 16), (511, 953, 134, 1442)),
        ((32, 16, 16), (2044, 3811, 535, 5768)),
        ((8, 24, 24), (1167, 2165, 317, 3259)),
    ],
)
@pytest.mark.parametrize("compat", [True, False])
def test_as_many_tokens_are_kept_on_average_as_officially(grid: Any, kept: tuple[int, ...], compat: bool) -> None:
    batches = 200 if compat else 400  # ours draws more sizes than there are official seeds here
    sampler, random, total = MultiBlock3D(grid, compat=compat), generator(), torch.zeros(4)
    for step in range(batches):
        families = sampler.sample(24, random, step)
        total += torch.tensor([n for masks in families for n in (masks.context.shape[1], masks.targets.shape[2])])
    torch.testing.assert_close(total / batches, torch.tensor(kept).float(), rtol=0.05 if compat else 0.1, atol=0)


def test_without_a_cut_contexts_have_the_official_share_of_the_tokens() -> None:
    for compat in (True, False):
        sampler, random, total = MultiBlock3D((8, 14, 14), compat=compat), generator(), torch.zeros(2)
        for step in range(400):
            total += torch.tensor([masks.context.shape[1] / 1568 for masks in sampler.sample(1, random, step)])
        torch.testing.assert_close(total / 400, torch.tensor([0.371, 0.187]), rtol=0, atol=0.02)


def test_compat_loses_late_frames() -> None:
    sampler, random = MultiBlock3D((8, 14, 14), compat=True), generator()
    for family in range(2):
        counts = {"context": torch.zeros(8), "targets": torch.zeros(8)}
        for step in range(30):
            masks = sampler.sample(24, random, step)[family]
            for part, count in counts.items():
                count += torch.bincount(getattr(masks, part).flatten() // 196, minlength=8)
        for count in counts.values():
            assert count[-1] < 0.6 * count[0]


def test_compat_follows_the_step_if_one_is_given_and_counts_calls_if_not() -> None:
    counting, told = MultiBlock3D((4, 14, 14), compat=True), MultiBlock3D((4, 14, 14), compat=True)
    drawn = [counting.sample(2, generator(i)) for i in range(3)]
    for step in (2, 0, 1):
        for again, first in zip(told.sample(2, generator(step), step), drawn[step], strict=True):
            assert torch.equal(again.context, first.context)
            assert torch.equal(again.targets, first.targets)


def test_compat_gives_all_families_the_same_block_size() -> None:
    sampler = MultiBlock3D(14, [Blocks(num_blocks=1, spatial_scale=(0.1, 0.5))] * 2, compat=True)
    for step in range(10):
        first, second = sampler.sample(1, generator(step), step)
        assert first.targets.shape == second.targets.shape


def test_compat_places_the_blocks_of_a_sample_again_until_a_context_is_left() -> None:
    full_height = Blocks(num_blocks=2, spatial_scale=(0.5, 0.5), aspect_ratio=(2.0, 2.0))
    sampler = MultiBlock3D((1, 4, 4), [full_height], compat=True)
    random, copy, redrawn = generator(), generator(), 0
    for step in range(40):
        (masks,) = sampler.sample(1, random, step)
        hidden: set[int] = set()
        while len(hidden) in (0, 4):  # blocks are 4 high and 2 wide, so two may hide every column
            redrawn += len(hidden) == 4
            hidden = set()
            for _ in range(2):
                torch.randint(0, 1, (1,), generator=copy)
                left = int(torch.randint(0, 3, (1,), generator=copy))
                torch.randint(0, 1, (1,), generator=copy)
                hidden |= {left, left + 1}
        assert masks.context.tolist() == [[r * 4 + c for r in range(4) for c in range(4) if c not in hidden]]
    assert redrawn > 5


def test_compat_gives_up_with_advice_where_hardly_any_place_leaves_a_context() -> None:
    # Blocks of at most 12x9 tokens leave 30 only if all forty lie at almost the same place.
    sampler = MultiBlock3D((1, 12, 12), [Blocks(num_blocks=40, spatial_scale=(0.7, 0.7))], compat=True, min_keep=30)
    with pytest.raises(RuntimeError, match=r"40 blocks of 1x\d+x\d+ tokens left fewer than 30 .* fewer or smaller"):
        sampler.sample(1, generator())


def test_compat_knows_no_candidates() -> None:
    with pytest.raises(ValueError, match=r"candidates is 4.*set compat to false"):
        MultiBlock3D(14, candidates=4, compat=True)

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from jepa_lightning.masking import MultiBlock, TokenMasks

Golden = Callable[[str], dict[str, Any]]


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def block_of(indices: Tensor, width: int) -> tuple[int, int, int, int]:
    rows, columns = indices // width, indices % width
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


def tokens_of(top: int, left: int, height: int, width: int, grid_width: int) -> list[int]:
    return [r * grid_width + c for r in range(top, top + height) for c in range(left, left + width)]


def overlapping(masks: TokenMasks) -> int:
    pairs = zip(masks.context.tolist(), masks.targets.flatten(1).tolist(), strict=True)
    return sum(bool(set(context) & set(targets)) for context, targets in pairs)


def token_frequency(sampler: MultiBlock, batches: int, batch_size: int, part: str) -> Tensor:
    counts, random = torch.zeros(sampler.height * sampler.width), generator()
    for _ in range(batches):
        (masks,) = sampler.sample(batch_size, random)
        counts += torch.bincount(getattr(masks, part).flatten(), minlength=len(counts))
    return (counts / (batches * batch_size)).reshape(sampler.height, sampler.width)


# ---------------------------------------------------------------------- the official sampler


@pytest.mark.parametrize("case", range(3))
def test_compat_gives_the_official_masks_bit_for_bit(golden: Golden, case: int) -> None:
    expected = golden("masks.json")["ijepa_multiblock"]["calls"][case]
    sampler = MultiBlock(expected["grid"], compat=True)
    torch.manual_seed(expected["torch_manual_seed"])
    for call in expected["calls"]:
        (masks,) = sampler.sample(expected["batch_size"])
        assert masks.context.shape[1] == call["K_context"]
        assert masks.targets.shape[1:] == (4, call["K_target"])
        assert [masks.context.sum(dim=1).tolist()] == call["context_index_sums"]
        assert masks.targets.sum(dim=2).T.tolist() == call["target_index_sums"]
        assert masks.targets[:, :, 0].T.tolist() == call["first_target_index"]
        if "context" in call:
            assert [masks.context.tolist()] == call["context"]
            assert masks.targets.transpose(0, 1).tolist() == call["target"]


def test_the_golden_masks_hold_one_call_in_full(golden: Golden) -> None:
    calls = golden("masks.json")["ijepa_multiblock"]["calls"]
    assert [case["grid"] for case in calls] == [14, 16, 28]
    assert "context" in calls[0]["calls"][0]


@pytest.mark.parametrize("grid", [14, 16, 28])
def test_compat_gives_the_official_block_sizes(golden: Golden, grid: int) -> None:
    expected = golden("masks.json")["ijepa_multiblock"]["block_sizes"][str(grid)]
    sampler = MultiBlock(grid, compat=True, allow_overlap=True)  # so that contexts are whole blocks
    for counter, target, context in zip(
        expected["counters"], expected["target_hw"], expected["context_hw"], strict=True
    ):
        (masks,) = sampler.sample(1, step=counter)
        assert list(block_of(masks.targets[0, 0], grid)[2:]) == target
        assert list(block_of(masks.context[0], grid)[2:]) == context


def test_compat_follows_the_step_if_one_is_given_and_counts_calls_if_not() -> None:
    counting, told = MultiBlock(14, compat=True), MultiBlock(14, compat=True)
    drawn = [counting.sample(2, generator(i)) for i in range(3)]
    for step in (2, 0, 1):
        (masks,) = told.sample(2, generator(step), step)
        assert torch.equal(masks.context, drawn[step][0].context)
        assert torch.equal(masks.targets, drawn[step][0].targets)


def naive_official(size: int, min_keep: int, step: int, random: Generator) -> tuple[list[list[int]], list[list[int]]]:
    own = generator(step)

    def block_size(scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int]:
        u = torch.rand(1, generator=own).item()
        area = int(size * size * (scale[0] + u * (scale[1] - scale[0])))
        aspect = ratio[0] + u * (ratio[1] - ratio[0])
        return min(round(math.sqrt(area * aspect)), size - 1), min(round(math.sqrt(area / aspect)), size - 1)

    def place(block: tuple[int, int]) -> set[int]:
        top = int(torch.randint(0, size - block[0], (1,), generator=random))
        left = int(torch.randint(0, size - block[1], (1,), generator=random))
        return set(tokens_of(top, left, *block, size))

    target, context = block_size((0.2, 0.25), (0.75, 1.5)), block_size((0.4, 0.5), (1.0, 1.0))
    contexts, targets = [], []
    for _ in range(6):
        blocks = [place(target) for _ in range(4)]
        hidden, patience = list(blocks), 20
        shown = place(context) - set().union(*hidden)
        while len(shown) <= min_keep:
            patience -= 1
            if patience == 0:
                hidden, patience = hidden[:-1], 20
            shown = place(context) - set().union(*hidden)
        contexts.append(sorted(shown))
        targets += [sorted(block) for block in blocks]
    shortest = min(map(len, contexts))
    return [context[:shortest] for context in contexts], targets


def test_compat_equals_a_naive_computation_where_contexts_have_to_be_drawn_again() -> None:
    sampler = MultiBlock(10, context_scale=(0.4, 0.5), target_scale=(0.2, 0.25), min_keep=12, compat=True)
    overlaps = 0
    for seed in range(25):
        (masks,) = sampler.sample(6, generator(seed), step=seed)
        context, targets = naive_official(10, 12, seed, generator(seed))
        assert masks.context.tolist() == context
        assert masks.targets.flatten(0, 1).tolist() == targets
        overlaps += overlapping(masks)
    assert overlaps > 5


def test_compat_never_uses_the_last_row_and_column_and_starves_the_bottom() -> None:
    sampler = MultiBlock(14, compat=True)
    context = token_frequency(sampler, 12, 16, "context")
    both = context + token_frequency(sampler, 12, 16, "targets")
    assert both[-1].sum() == both[:, -1].sum() == 0
    assert context[:4].sum() > 2 * context[-5:-1].sum()


# ---------------------------------------------------------------------- properties of ours


@pytest.mark.parametrize("grid", [14, 16, (10, 20), (1, 20, 10)])
def test_context_and_targets_are_disjoint_and_each_token_appears_once(grid: Any) -> None:
    sampler, random = MultiBlock(grid), generator()
    for _ in range(10):
        (masks,) = sampler.sample(16, random)
        for context, targets in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
            assert context == sorted(set(context))
            assert all(block == sorted(set(block)) for block in targets)
            assert min(context) >= 0
            assert max(context) < sampler.height * sampler.width
        assert not overlapping(masks)


def test_every_row_and_column_is_used_as_context_and_as_target() -> None:
    sampler = MultiBlock((12, 16))
    for part in ("context", "targets"):
        used = token_frequency(sampler, 20, 32, part) > 0
        assert used.all(), part


def test_every_place_of_a_target_is_equally_likely() -> None:
    sampler, counts, random = MultiBlock(8, target_scale=(0.25, 0.25), target_aspect_ratio=(1.0, 1.0)), {}, generator()
    for _ in range(40):
        (masks,) = sampler.sample(64, random)
        for first in masks.targets[:, :, 0].flatten().tolist():
            counts[first] = counts.get(first, 0) + 1
    assert sorted(counts) == tokens_of(0, 0, 5, 5, 8)
    mean = 40 * 64 * 4 / 25
    assert all(0.7 * mean < count < 1.3 * mean for count in counts.values())  # about 6 standard deviations


def test_the_cut_of_the_contexts_favours_no_side() -> None:
    sampler = MultiBlock(14)
    frequency = token_frequency(sampler, 60, 64, "context")
    rows, columns = frequency.mean(dim=1), frequency.mean(dim=0)
    torch.testing.assert_close(rows, rows.flip(0), rtol=0.08, atol=0)
    torch.testing.assert_close(columns, columns.flip(0), rtol=0.08, atol=0)


def test_contexts_are_cut_to_the_smallest_of_the_batch_by_a_uniform_choice() -> None:
    square = {"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)}
    sampler = MultiBlock(8, context_scale=(1.0, 1.0), num_targets=2, **square)
    chosen, smaller, random = torch.zeros(20), 0, generator()
    for _ in range(400):
        (masks,) = sampler.sample(4, random)
        hidden = [set(blocks.flatten().tolist()) for blocks in masks.targets]
        available = [[token for token in range(64) if token not in hidden[b]] for b in range(4)]
        assert masks.context.shape[1] == min(len(tokens) for tokens in available)
        for tokens, kept in zip(available, masks.context.tolist(), strict=True):
            assert set(kept) <= set(tokens)
            if len(tokens) > len(kept):
                smaller += 1
                share = len(kept) / len(tokens)
                for place in range(20):  # of the first twenty that could have been kept, how many were
                    chosen[place] += (tokens[place] in kept) - share
    assert smaller > 800
    assert chosen.abs().max() / smaller < 0.06  # 4 standard deviations


def test_masks_equal_a_naive_computation_for_each_sample_from_the_same_random_numbers() -> None:
    height, width, batch_size = 14, 18, 8
    (masks,) = MultiBlock((height, width), context_scale=(0.5, 0.6)).sample(batch_size, generator(3))
    seed = int(torch.randint(2**62, (1,), generator=generator(3)))
    random = np.random.Generator(np.random.SFC64(seed))

    def size(scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int]:
        u, v = random.random(), random.random()
        area = height * width * (scale[0] + u * (scale[1] - scale[0]))
        aspect = ratio[0] + v * (ratio[1] - ratio[0])
        return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))

    def corners(block: tuple[int, int], count: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        highest = np.array([height - block[0], width - block[1]]).reshape(2, *[1] * len(count))
        top, left = torch.from_numpy(random.integers(0, highest, (2, *count), endpoint=True))
        return top, left

    target = size((0.15, 0.2), (0.75, 1.5))
    top, left = corners(target, (batch_size, 4))
    blocks = [[tokens_of(int(top[b, m]), int(left[b, m]), *target, width) for m in range(4)] for b in range(batch_size)]
    context = size((0.5, 0.6), (1.0, 1.0))
    top, left = corners(context, (batch_size,))
    shown = [set(tokens_of(int(top[b]), int(left[b]), *context, width)) for b in range(batch_size)]
    left_over = [shown[b] - {token for block in blocks[b] for token in block} for b in range(batch_size)]
    assert masks.targets.tolist() == blocks
    assert masks.context.shape[1] == min(map(len, left_over)) >= 10
    assert all(set(masks.context[b].tolist()) <= left_over[b] for b in range(batch_size))


def test_area_and_aspect_ratio_of_the_targets_stay_in_their_ranges_and_are_independent() -> None:
    sampler, drawn, random = MultiBlock(64), [], generator()
    for _ in range(300):
        (masks,) = sampler.sample(1, random)
        drawn.append(block_of(masks.targets[0, 0], 64)[2:])
    area = torch.tensor([h * w / 64**2 for h, w in drawn])
    ratio = torch.tensor([h / w for h, w in drawn])
    assert 0.145 < area.min() < 0.155
    assert 0.195 < area.max() < 0.207
    assert 0.72 < ratio.min() < 0.79
    assert 1.45 < ratio.max() < 1.55
    assert torch.corrcoef(torch.stack([area, ratio]))[0, 1].abs() < 0.2


def test_the_same_generator_seed_gives_the_same_masks_and_another_gives_others() -> None:
    sampler = MultiBlock(14)
    (first,), (other,) = sampler.sample(8, generator(1)), sampler.sample(8, generator(2))
    torch.rand(7)  # the global generator plays no part
    (again,) = sampler.sample(8, generator(1))
    assert torch.equal(first.context, again.context)
    assert torch.equal(first.targets, again.targets)
    assert first.targets.tolist() != other.targets.tolist()


def test_without_a_generator_the_global_one_decides() -> None:
    sampler = MultiBlock(14)
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(sampler.sample(4)[0])
    assert torch.equal(drawn[0].context, drawn[1].context)
    assert torch.equal(drawn[0].targets, drawn[1].targets)


def test_samples_of_a_batch_have_places_of_their_own() -> None:
    (masks,) = MultiBlock(14).sample(16, generator())
    assert len({tuple(blocks.flatten().tolist()) for blocks in masks.targets}) > 12


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("compat", [False, True])
def test_two_contexts_make_two_families_with_the_same_targets(compat: bool) -> None:
    families = MultiBlock(14, context_scale=(0.5, 0.6), num_contexts=2, compat=compat).sample(8, generator())
    assert len(families) == 2
    assert torch.equal(families[0].targets, families[1].targets)
    assert families[0].context.tolist() != families[1].context.tolist()
    assert not any(overlapping(masks) for masks in families)


def test_a_second_context_that_is_drawn_again_does_not_move_the_targets_of_the_first() -> None:
    sampler = MultiBlock(14, context_scale=(0.3, 0.35), num_contexts=2, min_keep=12)
    for seed in range(10):  # a first draw leaves fewer than 12 tokens in some contexts
        families = sampler.sample(32, generator(seed))
        assert torch.equal(families[0].targets, families[1].targets)
        for masks in families:
            assert masks.context.shape[1] >= 12
            assert not overlapping(masks)


@pytest.mark.parametrize("compat", [False, True])
def test_with_overlap_allowed_the_context_is_a_whole_block(compat: bool) -> None:
    (masks,) = MultiBlock(14, context_scale=(0.5, 0.5), allow_overlap=True, compat=compat).sample(8, generator())
    for context, targets in zip(masks.context, masks.targets, strict=True):
        assert context.tolist() == tokens_of(*block_of(context, 14), 14)
        assert targets[0].tolist() == tokens_of(*block_of(targets[0], 14), 14)
    shared = [set(c.tolist()) & set(t.flatten().tolist()) for c, t in zip(masks.context, masks.targets, strict=True)]
    assert any(shared)


@pytest.mark.parametrize("num_targets", [1, 2, 6])
def test_the_number_of_targets_is_the_one_asked_for(num_targets: int) -> None:
    (masks,) = MultiBlock(14, num_targets=num_targets).sample(3, generator())
    assert masks.targets.shape[:2] == (3, num_targets)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("min_keep", [10, 30, 60])
def test_no_context_has_fewer_than_min_keep_tokens(min_keep: int, compat: bool) -> None:
    sampler = MultiBlock(14, target_scale=(0.36, 0.4), min_keep=min_keep, compat=compat)
    for seed in range(6):
        (masks,) = sampler.sample(16, generator(seed))
        assert masks.context.shape[1] >= min_keep
        assert masks.targets.shape[2] >= min_keep


def test_min_keep_is_reached_by_drawing_again_rather_than_by_overlap_where_that_is_possible() -> None:
    square = {"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)}
    sampler = MultiBlock(14, context_scale=(1.0, 1.0), num_targets=6, min_keep=49, **square)
    for seed in range(10):  # a first draw leaves fewer than 49 tokens in one of eight samples or so
        (masks,) = sampler.sample(32, generator(seed))
        assert masks.context.shape[1] >= 49
        assert not overlapping(masks)


# ---------------------------------------------------------------------- hard and impossible geometries


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"grid": 6, "num_targets": 20, "target_scale": (0.3, 0.4), "min_keep": 8},
        {"grid": 7, "num_targets": 8, "target_scale": (0.4, 0.5), "min_keep": 12},
        {"grid": (4, 24), "num_targets": 6, "target_scale": (0.12, 0.13), "min_keep": 4, "context_scale": (0.5, 1.0)},
        {"grid": 10, "num_targets": 4, "target_scale": (0.2, 0.25), "min_keep": 12, "num_contexts": 3},
        {"grid": 8, "num_targets": 6, "target_scale": (0.3, 0.35), "min_keep": 10, "context_scale": (0.5, 0.6)},
    ],
)
def test_hard_geometries_end_soon_and_keep_enough(settings: dict[str, Any], compat: bool) -> None:
    sampler = MultiBlock(**settings, compat=compat)
    begun = time.monotonic()
    for seed in range(3):
        for masks in sampler.sample(16, generator(seed)):
            assert masks.context.shape[1] >= settings["min_keep"]
            assert masks.targets.shape[1] == settings["num_targets"]
    assert time.monotonic() - begun < 20


def test_where_overlap_is_needed_the_first_targets_stay_hidden_and_the_last_are_shown() -> None:
    sampler = MultiBlock(
        7, context_scale=(1.0, 1.0), target_scale=(0.5, 0.5), target_aspect_ratio=(1.0, 1.0), min_keep=22
    )
    (masks,) = sampler.sample(32, generator())
    shown_for_need = 0
    for context, targets in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
        blocks = [set(block) for block in targets]
        assert not set(context) & blocks[0]
        hidden = max(k for k in range(1, 5) if len(set(range(49)) - set().union(*blocks[:k])) >= 22)
        assert not set(context) & set().union(*blocks[:hidden])
        shown_for_need += hidden < 4
    assert shown_for_need > 0


@pytest.mark.parametrize("compat", [False, True])
def test_targets_that_can_be_too_small_are_refused_with_the_numbers(compat: bool) -> None:
    with pytest.raises(ValueError, match=r"3x3 = 9 tokens on a 8x8 grid.*min_keep 10.*target_scale \[0.15, 0.2\]"):
        MultiBlock(8, compat=compat)


@pytest.mark.parametrize("compat", [False, True])
def test_the_advice_of_the_message_works(compat: bool) -> None:
    with pytest.raises(ValueError, match="lower min_keep to") as caught:
        MultiBlock(8, compat=compat)
    advised = int(str(caught.value).split("lower min_keep to ")[1].split()[0])
    sampler = MultiBlock(8, min_keep=advised, compat=compat)
    for seed in range(20):
        assert sampler.sample(8, generator(seed))[0].targets.shape[2] >= advised


@pytest.mark.parametrize("compat", [False, True])
def test_contexts_that_can_be_too_small_are_refused_with_the_numbers(compat: bool) -> None:
    with pytest.raises(ValueError, match=r"context block can be as small as .* on a 14x14 grid.*context_scale \[0.1"):
        MultiBlock(14, context_scale=(0.1, 0.2), compat=compat)


@pytest.mark.parametrize(
    ("name", "value"),
    [("target_scale", (0.4, 1.6)), ("target_scale", (0.2, 0.15)), ("context_scale", (0.0, 1.0)),
     ("context_scale", (0.85, 1.1)), ("target_aspect_ratio", (0.0, 1.5)), ("target_aspect_ratio", (1.5, 0.75))],
)  # fmt: skip
def test_scales_that_are_no_shares_and_ranges_that_descend_are_refused(name: str, value: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*got \[{value[0]}, {value[1]}\]"):
        MultiBlock(14, **{name: value})


@pytest.mark.parametrize("compat", [False, True])
def test_targets_that_can_leave_no_context_are_refused_unless_they_may_stay_in_it(compat: bool) -> None:
    wanted: dict[str, Any] = {"num_targets": 1, "target_scale": (0.4, 1.0), "target_aspect_ratio": (1.0, 1.0)}
    with pytest.raises(ValueError, match=r"as large as \d+x\d+ .* 14x14 grid.*lower target_scale \[0.4, 1.0\]"):
        MultiBlock(14, min_keep=28, compat=compat, **wanted)
    (masks,) = MultiBlock(14, min_keep=28, allow_overlap=True, compat=compat, **wanted).sample(2, generator(0))
    assert masks.context.shape[1] >= 28


@pytest.mark.parametrize("count", [{"num_contexts": 0}, {"num_targets": 0}])
def test_no_context_or_no_target_is_refused(count: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MultiBlock(14, **count)


def test_a_grid_with_time_is_refused() -> None:
    with pytest.raises(ValueError, match="one step in time"):
        MultiBlock((2, 14, 14))


@pytest.mark.parametrize("compat", [False, True])
def test_a_geometry_that_is_accepted_keeps_its_promises(compat: bool) -> None:
    random, accepted = generator(11), 0
    for _ in range(120):
        height, width, min_keep, targets = (
            int(torch.randint(low, high, (1,), generator=random)) for low, high in ((2, 16), (2, 16), (1, 12), (1, 5))
        )
        scale = float(torch.rand(1, generator=random)) * 0.5
        try:
            sampler = MultiBlock(
                (height, width),
                context_scale=(0.5, 1.0),
                target_scale=(scale, scale + 0.1),
                target_aspect_ratio=(0.5, 2.0),
                num_targets=targets,
                min_keep=min_keep,
                compat=compat,
            )
        except ValueError:
            continue
        accepted += 1
        (masks,) = sampler.sample(4, random)
        assert isinstance(masks, TokenMasks)
        assert masks.context.shape[1] >= min_keep
        assert masks.targets.shape[2] >= min_keep
        assert int(masks.targets.max()) < height * width
    assert accepted > 20


def test_a_min_keep_that_would_allow_empty_contexts_is_refused() -> None:
    with pytest.raises(ValueError, match="min_keep"):
        MultiBlock(6, target_scale=(0.9, 1.0), min_keep=0)


@pytest.mark.parametrize("grid", [14, (8, 32), (40, 10)])
def test_the_area_of_the_context_stays_in_its_range_on_any_grid(grid: Any) -> None:
    sampler = MultiBlock(grid, allow_overlap=True)
    for seed in range(5):
        (masks,) = sampler.sample(1, generator(seed))
        share = masks.context.shape[1] / (sampler.height * sampler.width)
        assert 0.8 <= share <= 1.0


# ---------------------------------------------------------------------- masks of each sample's own


def rows(indices: Tensor) -> list[list[int]]:
    """Without padding, which must be at the end."""
    found = [[token for token in row if token >= 0] for row in indices.tolist()]
    assert all(row[: len(kept)] == kept for row, kept in zip(indices.tolist(), found, strict=True))
    return found


def test_with_per_sample_masks_nothing_is_cut() -> None:
    sampler = MultiBlock(14, context_scale=(1.0, 1.0), num_targets=2, per_sample=True)
    (masks,) = sampler.sample(32, generator())
    for context, blocks in zip(rows(masks.context), masks.targets, strict=True):
        assert set(context) | {token for block in rows(blocks) for token in block} == set(range(196))
        assert not set(context) & set(blocks.flatten().tolist())
    assert len({len(row) for row in rows(masks.context)}) > 8
    assert len({len(row) for row in rows(masks.targets[:, 0])}) > 3


def test_per_sample_masks_are_those_of_batches_of_one_from_the_same_random_numbers() -> None:
    sampler = MultiBlock(14, num_contexts=2, context_scale=(0.5, 0.7), per_sample=True)
    families = sampler.sample(6, generator(3))
    seed = int(torch.randint(2**62, (1,), generator=generator(3)))
    random = np.random.Generator(np.random.SFC64(seed))
    for number in range(6):
        alone = MultiBlock(14, num_contexts=2, context_scale=(0.5, 0.7))._draw(1, random)
        for together, single in zip(families, alone, strict=True):
            assert rows(together.context)[number] == single.context[0].tolist()
            assert rows(together.targets[number]) == single.targets[0].tolist()


def test_a_batch_of_one_is_the_same_with_and_without_per_sample() -> None:
    for seed in range(5):
        pair = [MultiBlock(14, per_sample=own).sample(1, generator(seed))[0] for own in (False, True)]
        assert torch.equal(pair[0].context, pair[1].context)
        assert torch.equal(pair[0].targets, pair[1].targets)


def test_every_sample_has_min_keep_tokens_in_its_context_and_in_its_targets() -> None:
    sampler = MultiBlock(14, target_scale=(0.36, 0.4), min_keep=60, per_sample=True)
    for seed in range(3):
        (masks,) = sampler.sample(16, generator(seed))
        assert min(map(len, rows(masks.context))) >= 60
        (small,) = MultiBlock(14, target_scale=(0.05, 0.4), min_keep=9, per_sample=True).sample(16, generator(seed))
        assert min(len(row) for blocks in small.targets for row in rows(blocks)) >= 9


def test_contexts_are_as_long_as_those_of_batches_of_one() -> None:
    own, cut = MultiBlock(14, per_sample=True), MultiBlock(14)
    lengths = [len(row) for seed in range(5) for row in rows(own.sample(64, generator(seed))[0].context)]
    alone = [cut.sample(1, generator(100 + seed))[0].context.shape[1] for seed in range(320)]
    mean = sum(lengths) / len(lengths)
    assert abs(mean - sum(alone) / len(alone)) < 6  # four standard deviations
    assert mean > 1.3 * cut.sample(64, generator())[0].context.shape[1]


def test_per_sample_masks_and_the_official_sampler_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="set per_sample or compat to false"):
        MultiBlock(14, compat=True, per_sample=True)

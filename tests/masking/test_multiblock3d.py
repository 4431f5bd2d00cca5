from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from jepa_lightning.masking import Blocks, Grid, MaskCollator, MultiBlock3D, Sample, TokenMasks

SHORT, LONG = Blocks(8, (0.15, 0.15)), Blocks(2, (0.7, 0.7))
PART = {"temporal_scale": (0.5, 0.5)}


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def frequency(sampler: MultiBlock3D, batches: int, batch_size: int, part: str, step: int | None = None) -> Tensor:
    """How often each token (T', H', W') is in this part of the masks of the first family."""
    counts, random = torch.zeros(math.prod(sampler.grid)), generator()
    for _ in range(batches):
        indices = getattr(sampler.sample(batch_size, random, step)[0], part)
        counts += torch.bincount(indices.flatten(), minlength=len(counts))
    return (counts / (batches * batch_size)).reshape(sampler.grid)


def rows(masks: TokenMasks) -> list[tuple[set[int], set[int]]]:
    """Context and targets of each sample."""
    pairs = zip(masks.context.tolist(), masks.targets.squeeze(1).tolist(), strict=True)
    return [(set(context), set(targets)) for context, targets in pairs]


# ---------------------------------------------------------------------- properties


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("grid", [(8, 14, 14), (4, 6, 10), (3, 12, 5), (1, 14, 14), (14, 14), 14])
def test_context_and_targets_are_disjoint_and_in_raster_order(grid: Any, compat: bool) -> None:
    sampler = MultiBlock3D(grid, [SHORT, LONG, Blocks(3, (0.1, 0.4), (0.2, 0.9))], compat=compat)
    for seed in range(4):
        families = sampler.sample(6, generator(seed), seed)
        assert len(families) == 3
        for masks in families:
            assert masks.targets.shape[:2] == (6, 1)
            assert masks.context.dtype == masks.targets.dtype == torch.int64
            for indices in (masks.context, masks.targets.squeeze(1)):
                assert indices.shape[1] > 0
                assert bool((indices.diff(dim=1) > 0).all())
                assert 0 <= int(indices.min()) <= int(indices.max()) < math.prod(sampler.grid)
            assert not any(context & targets for context, targets in rows(masks))


@pytest.mark.parametrize("options", [{}, PART, {"temporal_scale": (0.3, 0.8)}, {"spatial_scale": (0.3, 0.4)}])
def test_every_token_can_be_context_and_target(options: dict[str, Any]) -> None:
    sampler = MultiBlock3D((4, 6, 8), [Blocks(**{"num_blocks": 3, **options})])
    for part in ("context", "targets"):
        assert bool((frequency(sampler, 30, 16, part) > 0).all()), part


@pytest.mark.parametrize("blocks", [SHORT, LONG, Blocks(8, (0.15, 0.15), **PART)])
@pytest.mark.parametrize("part", ["context", "targets"])
def test_late_frames_are_used_as_often_as_early_ones(blocks: Blocks, part: str) -> None:
    used = frequency(MultiBlock3D((8, 14, 14), [blocks]), 40, 24, part).mean(dim=(1, 2))
    torch.testing.assert_close(used, used.flip(0), rtol=0.08, atol=0)
    if blocks.temporal_scale == (1.0, 1.0):
        torch.testing.assert_close(used, used.mean().expand(8), rtol=0.08, atol=0)


@pytest.mark.parametrize("part", ["context", "targets"])
def test_no_side_of_the_frame_is_favoured(part: str) -> None:
    used = frequency(MultiBlock3D((2, 10, 10), [SHORT]), 60, 32, part)
    for axis in (1, 2):
        lines = used.mean(dim=(0, 3 - axis))
        torch.testing.assert_close(lines, lines.flip(0), rtol=0.08, atol=0)


def test_masks_equal_a_naive_computation_from_the_same_random_numbers() -> None:
    grid, batch_size = (6, 10, 12), 8
    blocks = Blocks(3, (0.1, 0.3), (0.3, 0.9), (0.5, 2.0), max_temporal_keep=0.7)
    tokens = np.arange(math.prod(grid)).reshape(grid)
    for seed in range(6):
        (masks,) = MultiBlock3D(grid, [blocks]).sample(batch_size, generator(seed))
        state = int(torch.randint(2**62, (1,), generator=generator(seed)))
        random = np.random.Generator(np.random.SFC64(state))
        u, v, w = random.random(), random.random(), random.random()
        steps = int(6 * (0.3 + u * 0.6))
        area, aspect = int(120 * (0.1 + v * 0.2)), 0.5 + w * 1.5
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        highest = np.array([6 - steps, 10 - height, 12 - width]).reshape(3, 1, 1)
        corners = random.integers(0, highest, (3, batch_size, 3), endpoint=True)
        shown, hidden = [], []
        for sample in range(batch_size):
            covered = set(tokens[4:].flatten().tolist())  # 0.7 of six steps are four
            for t, y, x in corners[:, sample].T:
                covered |= set(tokens[t : t + steps, y : y + height, x : x + width].flatten().tolist())
            hidden.append(covered)
            shown.append(set(tokens.flatten().tolist()) - covered)
        assert masks.context.shape[1] == min(map(len, shown))
        assert masks.targets.shape[2] == min(map(len, hidden))
        for sample, (context, targets) in enumerate(rows(masks)):
            assert context <= shown[sample]
            assert targets <= hidden[sample]


def test_a_batch_of_one_loses_nothing() -> None:
    sampler = MultiBlock3D((4, 8, 8), [SHORT, LONG, Blocks(4, (0.2, 0.3), **PART, max_temporal_keep=0.5)])
    for seed in range(5):
        for masks in sampler.sample(1, generator(seed)):
            assert masks.context.shape[1] + masks.targets.shape[2] == 256


def test_what_is_cut_is_chosen_uniformly() -> None:
    # Tubes whose frames are alike: of each tube that is not whole, any frame may be missing.
    sampler, missing, random = MultiBlock3D((5, 8, 8), [Blocks(4, (0.2, 0.2))]), torch.zeros(2, 5), generator()
    for _ in range(60):
        (masks,) = sampler.sample(12, random)
        for part, indices in enumerate((masks.context, masks.targets.squeeze(1))):
            frames = torch.zeros(12, 320, dtype=torch.bool).scatter(1, indices, value=True).reshape(12, 5, 64)
            missing[part] += (frames.any(dim=1, keepdim=True) & ~frames).sum(dim=(0, 2))
    assert missing.min() > 1000
    torch.testing.assert_close(missing / missing.mean(dim=1, keepdim=True), torch.ones(2, 5), rtol=0.1, atol=0)


def test_duration_area_and_aspect_ratio_stay_in_their_ranges_and_fill_them() -> None:
    blocks, drawn = Blocks(1, (0.2, 0.5), (0.25, 0.75), (0.5, 2.0)), []
    sampler = MultiBlock3D((16, 20, 20), [blocks])
    for seed in range(200):
        token = sampler.sample(1, generator(seed))[0].targets.flatten()
        extents = [int(a.max() - a.min()) + 1 for a in (token // 400, token // 20 % 20, token % 20)]
        assert len(token) == math.prod(extents)
        drawn.append((extents[0] / 16, extents[1] * extents[2] / 400, extents[1] / extents[2]))
    for values, (low, high) in zip(zip(*drawn, strict=True), [(0.25, 0.75), (0.2, 0.5), (0.5, 2.0)], strict=True):
        assert low - 0.1 < min(values) < low + 0.1
        assert high - 0.15 < max(values) < high + 0.15
    independent = np.corrcoef(np.array(drawn).T)
    assert np.abs(independent - np.eye(3)).max() < 0.25


def test_blocks_keep_their_area_on_flat_grids_where_the_official_ones_are_clipped() -> None:
    for grid in ((2, 4, 24), (2, 24, 4)):
        ours, official = (MultiBlock3D(grid, [Blocks(1, (0.5, 0.5))], compat=compat) for compat in (False, True))
        for seed in range(5):
            assert ours.sample(1, generator(seed))[0].targets.shape[2] == 2 * 48
            assert official.sample(1, generator(seed))[0].targets.shape[2] < 2 * 36


# ---------------------------------------------------------------------- randomness


def test_masks_follow_from_the_generator_alone() -> None:
    sampler = MultiBlock3D((4, 8, 8))
    first, other = sampler.sample(8, generator(1)), sampler.sample(8, generator(2))
    torch.rand(7)  # the global generator plays no part
    again = sampler.sample(8, generator(1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.context, b.context)
        assert torch.equal(a.targets, b.targets)
        assert a.targets.tolist() != c.targets.tolist()


def test_without_a_generator_the_global_one_decides() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(MultiBlock3D((4, 8, 8)).sample(4)[1])
    assert torch.equal(drawn[0].context, drawn[1].context)
    assert torch.equal(drawn[0].targets, drawn[1].targets)


def test_samples_and_families_have_blocks_of_their_own() -> None:
    sampler = MultiBlock3D((2, 14, 14), [Blocks(1, (0.1, 0.5))] * 2)
    sizes = [[masks.targets.shape[2] for masks in sampler.sample(1, generator(seed))] for seed in range(12)]
    assert sum(first != second for first, second in sizes) > 8
    first, _ = sampler.sample(16, generator())
    assert len({tuple(targets) for targets in first.targets.squeeze(1).tolist()}) > 12


def test_the_collator_draws_the_same_masks_for_the_same_samples_of_an_epoch() -> None:
    clips = [Sample(torch.zeros(3, 2, 4, 4), index=index, epoch=2, step=9) for index in (5, 3)]
    first, again = (MaskCollator(MultiBlock3D((2, 8, 8)), seed=1)(clips).masks for _ in range(2))
    later = MaskCollator(MultiBlock3D((2, 8, 8)), seed=1)([clip._replace(epoch=3) for clip in clips]).masks
    assert torch.equal(first[0].targets, again[0].targets)
    assert first[0].targets.tolist() != later[0].targets.tolist()


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("compat", [False, True])
def test_late_steps_are_never_context_but_target_with_max_temporal_keep(compat: bool) -> None:
    sampler = MultiBlock3D((8, 6, 6), [Blocks(2, (0.3, 0.3), max_temporal_keep=6 / 16)], compat=compat)
    for seed in range(5):
        (masks,) = sampler.sample(1, generator(seed), seed)
        assert int(masks.context.max()) < 3 * 36
        assert set(range(3 * 36, 8 * 36)) <= set(masks.targets.flatten().tolist())


def test_an_image_keeps_its_only_step_with_any_max_temporal_keep() -> None:
    (masks,) = MultiBlock3D(8, [Blocks(max_temporal_keep=0.3)]).sample(4, generator())
    assert masks.context.shape[1] > 0


def test_max_keep_cuts_contexts_at_random_where_the_official_one_takes_the_first() -> None:
    for compat in (False, True):
        sampler = MultiBlock3D((4, 8, 8), [Blocks(2, (0.2, 0.2), max_keep=20)], compat=compat)
        step = torch.cat([sampler.sample(8, generator(s), s)[0].context for s in range(10)]) // 64
        assert step.shape == (80, 20)
        shares = torch.bincount(step.flatten(), minlength=4) / step.numel()
        assert bool((shares - 0.25).abs().max() < 0.06) is not compat


def test_a_max_keep_above_the_shortest_context_changes_nothing() -> None:
    plain, limited = (MultiBlock3D((4, 8, 8), [Blocks(max_keep=limit)]).sample(4, generator()) for limit in (None, 256))
    assert torch.equal(plain[0].context, limited[0].context)
    assert torch.equal(plain[0].targets, limited[0].targets)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("options", [{"full_complement": True}, {"pred_full_complement": True}])
def test_a_complement_leaves_no_token_out_and_keeps_the_other_mask(options: dict[str, bool], compat: bool) -> None:
    base = {"num_blocks": 2, "spatial_scale": (0.3, 0.3), **PART}
    plain, whole = (
        MultiBlock3D((4, 8, 8), [Blocks(**base, **more)], compat=compat).sample(6, generator(), 0)[0]
        for more in ({}, options)
    )
    assert all(context | targets == set(range(256)) and not context & targets for context, targets in rows(whole))
    kept = "context" if "full_complement" in options else "targets"
    assert torch.equal(getattr(plain, kept), getattr(whole, kept))
    assert plain.context.shape[1] + plain.targets.shape[2] < 256


def test_full_complement_goes_before_pred_full_complement_and_looks_at_max_keep() -> None:
    both = Blocks(full_complement=True, pred_full_complement=True, max_keep=30)
    (masks,) = MultiBlock3D((4, 8, 8), [both]).sample(4, generator())
    assert (masks.context.shape[1], masks.targets.shape[2]) == (30, 226)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("options", [{}, {"full_complement": True, "max_keep": 40}])
def test_inv_block_swaps_the_two_masks_at_the_end(options: dict[str, Any], compat: bool) -> None:
    plain, swapped = (
        MultiBlock3D((4, 8, 8), [Blocks(inv_block=inverse, **options)], compat=compat).sample(4, generator(), 0)[0]
        for inverse in (False, True)
    )
    assert torch.equal(plain.context, swapped.targets.squeeze(1))
    assert torch.equal(plain.targets.squeeze(1), swapped.context)


# ---------------------------------------------------------------------- candidates


def counts_of_two(sampler: MultiBlock3D, batches: int) -> tuple[Tensor, float]:
    """Context sizes of both samples of a batch of 2x8x8 tokens before the cut; how often the first is the smaller."""
    random, counts, first = generator(), [], []
    for _ in range(batches):
        (masks,) = sampler.sample(2, random)
        counts.append([masks.context.shape[1], math.prod(sampler.grid) - masks.targets.shape[2]])
        if counts[-1][0] < counts[-1][1]:  # the smaller context is whole, so that its frames are alike
            context = masks.context[0]
            first.append(context[context < 64].tolist() == (context[context >= 64] - 64).tolist())
    return torch.tensor(counts).float(), sum(first) / len(first)


def test_candidates_leave_the_distribution_of_a_sample_as_it_is_but_make_a_batch_alike() -> None:
    settings: Any = ((2, 8, 8), [Blocks(4, (0.2, 0.2))])
    (alone, alone_first), (chosen, chosen_first) = (
        counts_of_two(MultiBlock3D(*settings, candidates=candidates), 1500) for candidates in (1, 6)
    )
    assert abs(float(alone.mean() - chosen.mean())) < 1.2  # contexts have some 72 +- 15 tokens
    assert abs(float(alone.std() / chosen.std()) - 1) < 0.06
    assert (chosen[:, 1] - chosen[:, 0]).mean() < 0.35 * (alone[:, 1] - alone[:, 0]).mean()
    assert 0.44 < alone_first < 0.56
    assert 0.44 < chosen_first < 0.56  # the place in the batch does not depend on the size


def test_candidates_lose_fewer_tokens() -> None:
    lost = []
    for candidates in (1, 8):
        sampler, random = MultiBlock3D((8, 14, 14), candidates=candidates), generator()
        families = [sampler.sample(24, random) for _ in range(60)]
        kept = torch.tensor([[m.context.shape[1] + m.targets.shape[2] for m in masks] for masks in families])
        lost.append(1 - kept.float().mean(dim=0) / 1568)
    assert lost[0].min() > 0.2
    assert lost[1].max() < 0.06


# ---------------------------------------------------------------------- hard and impossible geometries


@pytest.mark.parametrize(
    ("grid", "blocks", "min_keep"),
    [
        ((2, 8, 8), Blocks(12, (0.7, 0.7)), 30),
        ((4, 6, 6), Blocks(20, (0.4, 0.5), (0.6, 0.8)), 40),
        ((8, 4, 4), Blocks(4, (1.0, 1.0), (0.75, 0.75), max_temporal_keep=0.5), 32),
        ((1, 3, 20), Blocks(6, (0.5, 0.6)), 20),
    ],
)
@pytest.mark.parametrize("candidates", [1, 3])
def test_hard_geometries_end_soon_and_keep_enough(grid: Grid, blocks: Blocks, min_keep: int, candidates: int) -> None:
    sampler = MultiBlock3D(grid, [blocks], min_keep, candidates)
    begun = time.monotonic()
    for seed in range(5):
        (masks,) = sampler.sample(16, generator(seed))
        assert masks.context.shape[1] >= min_keep
        assert masks.targets.shape[2] > 0
        assert not any(context & targets for context, targets in rows(masks))
    assert time.monotonic() - begun < 20


def test_min_keep_is_reached_by_placing_again_rather_than_by_fewer_blocks_where_that_is_possible() -> None:
    # Of 8x8 tokens, two blocks of 4x4 hide more than 24 in two of three samples.
    sampler, single = MultiBlock3D(8, [Blocks(2, (0.25, 0.25), aspect_ratio=(1.0, 1.0))], min_keep=40), 0
    for seed in range(60):
        (masks,) = sampler.sample(1, generator(seed))
        assert masks.context.shape[1] >= 40
        single += masks.targets.shape[2] == 16  # one block, or two at one place
    assert single < 15


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(
    ("grid", "blocks", "message"),
    [
        (
            (8, 4, 4),
            Blocks(1, (1.0, 1.0)),
            r"8x4x4 tokens on a 8x4x4 grid, of which 8 .* leaves 0 .*lower min_keep, spatial",
        ),
        (4, Blocks(8, (0.5, 1.0), (0.5, 1.0)), r"1x4x4 tokens on a 1x4x4 grid"),
        ((8, 4, 4), Blocks(1, (1.0, 1.0), (0.5, 1.0), max_temporal_keep=0.5), r"of which 4 time steps can be context"),
    ],
)
def test_blocks_that_can_hide_everything_are_refused(grid: Any, blocks: Blocks, message: str, compat: bool) -> None:
    with pytest.raises(ValueError, match=message):
        MultiBlock3D(grid, [SHORT, blocks], compat=compat)


def test_blocks_that_leave_too_little_for_min_keep_are_refused_with_the_number() -> None:
    settings: Any = ((2, 8, 8), [Blocks(1, (0.5, 0.5), aspect_ratio=(2.0, 2.0))])
    with pytest.raises(ValueError, match="leaves 64 tokens, fewer than the 65 that min_keep asks for"):
        MultiBlock3D(*settings, min_keep=65)
    assert MultiBlock3D(*settings, min_keep=64).sample(4, generator())[0].context.shape[1] == 64


@pytest.mark.parametrize("compat", [False, True])
def test_a_geometry_that_is_accepted_keeps_its_promises(compat: bool) -> None:
    random, accepted = generator(11), 0
    for _ in range(80):
        steps, height, width, min_keep, blocks = (
            int(torch.randint(low, high, (1,), generator=random))
            for low, high in ((1, 6), (1, 10), (1, 10), (1, 12), (1, 5))
        )
        low, temporal, keep = torch.rand(3, generator=random).tolist()
        family = Blocks(
            blocks, (0.5 * low + 0.01, 0.5 * low + 0.1), (temporal * 0.9 + 0.01, 1.0), (0.5, 2.0), keep + 1e-3
        )
        try:
            sampler = MultiBlock3D((steps, height, width), [family], min_keep, compat=compat)
        except ValueError:
            continue
        accepted += 1
        (masks,) = sampler.sample(4, random)
        assert masks.context.shape[1] >= min_keep
        assert masks.targets.shape[2] > 0
    assert accepted > 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": []}, "families is empty"),
        ({"min_keep": 0}, "min_keep and candidates must be at least 1, got 0 and 1"),
        ({"candidates": 0}, "min_keep and candidates must be at least 1, got 1 and 0"),
    ],
)
def test_nothing_to_draw_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiBlock3D((8, 14, 14), **settings)


# ---------------------------------------------------------------------- masks of each sample's own


def kept(indices: Tensor) -> list[list[int]]:
    """Rows without padding, which must be at the end."""
    found = [[token for token in row if token >= 0] for row in indices.tolist()]
    assert all(row[: len(tokens)] == tokens for row, tokens in zip(indices.tolist(), found, strict=True))
    return found


def test_with_per_sample_masks_every_token_is_context_or_target() -> None:
    sampler = MultiBlock3D((4, 8, 8), per_sample=True)
    for masks in sampler.sample(16, generator()):
        contexts, targets = kept(masks.context), kept(masks.targets.squeeze(1))
        assert all(sorted(c + t) == list(range(256)) for c, t in zip(contexts, targets, strict=True))
        assert len({len(context) for context in contexts}) > 4


@pytest.mark.parametrize(
    "blocks", [SHORT, Blocks(3, (0.1, 0.3), (0.3, 0.9), max_keep=60, full_complement=True), Blocks(inv_block=True)]
)
def test_per_sample_masks_are_those_of_batches_of_one_from_the_same_random_numbers(blocks: Blocks) -> None:
    (together,) = MultiBlock3D((4, 8, 8), [blocks], per_sample=True).sample(5, generator(2))
    seed = int(torch.randint(2**62, (1,), generator=generator(2)))
    random = np.random.Generator(np.random.SFC64(seed))
    for context, targets in zip(kept(together.context), kept(together.targets.squeeze(1)), strict=True):
        (alone,) = MultiBlock3D((4, 8, 8), [blocks])._draw(1, random)
        assert context == alone.context[0].tolist()
        assert targets == alone.targets[0, 0].tolist()


def test_every_sample_has_min_keep_tokens_outside_its_blocks() -> None:
    sampler = MultiBlock3D((2, 8, 8), [Blocks(6, (0.5, 0.7))], min_keep=30, per_sample=True)
    (masks,) = sampler.sample(24, generator())
    assert min(map(len, kept(masks.context))) >= 30


@pytest.mark.parametrize("option", [{"compat": True}, {"candidates": 2}])
def test_per_sample_masks_exclude_what_is_about_cutting(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="or per_sample to false"):
        MultiBlock3D((4, 8, 8), per_sample=True, **option)

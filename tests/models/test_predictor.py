from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.masking import padded
from jepa_lightning.models import (
    SIZES,
    BlockOptions,
    EnergyBlocks,
    Predictor,
    RoPE,
    SinCos3D,
    TargetNoise,
    VisionTransformer,
)
from jepa_lightning.models.positions import Grid, Rotation, fit_positions

EncoderFactory = Callable[..., VisionTransformer]
CONTEXT = torch.tensor([[0, 1, 4, 5, 6], [2, 3, 8, 9, 12]])
TARGETS = torch.tensor([[[10, 11], [14, 15], [2, 3]], [[0, 1], [4, 5], [10, 14]]])


@pytest.fixture
def predictor(tiny_encoder: EncoderFactory) -> Predictor:
    return Predictor(tiny_encoder(), embed_dim=24, depth=2, num_heads=3, init_std=None)


def naive(predictor: Predictor, tokens: Tensor, context: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
    samples = []
    for b in range(len(tokens)):
        blocks = []
        for block in targets[b]:
            shown = predictor.predictor_embed(tokens[b]) + positions[context[b]]
            asked = predictor.mask_token[0] + positions[block]
            x = torch.cat([shown, asked]).unsqueeze(0)
            for layer in predictor.predictor_blocks:
                x = layer(x)
            x = predictor.predictor_norm(x)[0, len(shown) :]
            blocks.append(predictor.predictor_proj(x))
        samples.append(torch.stack(blocks))
    return torch.stack(samples)


def test_it_equals_a_loop_over_samples_and_blocks_also_in_gradient(predictor: Predictor) -> None:
    tokens = torch.randn(2, 5, 32, requires_grad=True)
    weights = torch.randn(2, 3, 2, 32)
    inputs = [tokens, *predictor.parameters()]
    fast = predictor(tokens, CONTEXT, TARGETS)
    slow = naive(predictor, tokens, CONTEXT, TARGETS, predictor.predictor_pos_embed[0])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((slow * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_blocks_do_not_see_each_other(predictor: Predictor) -> None:
    tokens = torch.randn(2, 5, 32)
    other = TARGETS.clone()
    other[:, 1:] = torch.tensor([[7, 13], [8, 9]])
    before, after = predictor(tokens, CONTEXT, TARGETS), predictor(tokens, CONTEXT, other)
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=0, atol=1e-6)
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-3


def test_tokens_of_one_block_do_see_each_other(predictor: Predictor) -> None:
    tokens, other = torch.randn(2, 5, 32), TARGETS.clone()
    other[:, 0, 1] = 13
    change = predictor(tokens, CONTEXT, TARGETS)[:, 0, 0] - predictor(tokens, CONTEXT, other)[:, 0, 0]
    assert change.abs().max() > 1e-4


def test_samples_do_not_see_each_other(predictor: Predictor) -> None:
    tokens = torch.randn(2, 5, 32)
    alone = predictor(tokens[1:], CONTEXT[1:], TARGETS[1:])
    torch.testing.assert_close(predictor(tokens, CONTEXT, TARGETS)[1:], alone, rtol=0, atol=1e-5)


def test_permuting_the_target_tokens_permutes_the_output(predictor: Predictor) -> None:
    tokens, order = torch.randn(2, 5, 32), torch.tensor([1, 0])
    permuted = predictor(tokens, CONTEXT, TARGETS[..., order])
    torch.testing.assert_close(permuted, predictor(tokens, CONTEXT, TARGETS)[:, :, order], rtol=0, atol=1e-5)


def test_permuting_the_blocks_permutes_the_output(predictor: Predictor) -> None:
    tokens, order = torch.randn(2, 5, 32), torch.tensor([2, 0, 1])
    permuted = predictor(tokens, CONTEXT, TARGETS[:, order])
    torch.testing.assert_close(permuted, predictor(tokens, CONTEXT, TARGETS)[:, order], rtol=0, atol=1e-5)


def test_permuting_the_context_with_its_indices_changes_nothing(predictor: Predictor) -> None:
    tokens, order = torch.randn(2, 5, 32), torch.tensor([3, 1, 4, 0, 2])
    permuted = predictor(tokens[:, order], CONTEXT[:, order], TARGETS)
    torch.testing.assert_close(permuted, predictor(tokens, CONTEXT, TARGETS), rtol=0, atol=1e-5)


def test_the_prediction_depends_on_where_it_is_asked_for(predictor: Predictor) -> None:
    predicted = predictor(torch.randn(1, 5, 32), CONTEXT[:1], TARGETS[:1])
    assert (predicted[0, 0, 0] - predicted[0, 2, 0]).abs().max() > 1e-2


def test_heads_default_to_those_of_the_encoder(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder(num_heads=8)
    assert [b.attn.num_heads for b in Predictor(encoder, 16, 2).predictor_blocks] == [8, 8]
    assert [b.attn.num_heads for b in Predictor(encoder, 16, 2, num_heads=2).predictor_blocks] == [2, 2]


@pytest.mark.parametrize(
    ("size", "depth", "parameters"),
    [("base", 6, 11_238_912), ("large", 12, 22_082_560), ("huge", 12, 22_279_424), ("giant", 16, 29_475_712)],
)
def test_the_published_predictors_have_the_published_parameter_counts(size: str, depth: int, parameters: int) -> None:
    settings: dict[str, Any] = {**SIZES[size], "depth": 1}
    with torch.device("meta"):
        predictor = Predictor(VisionTransformer(**settings), 384, depth)
    assert sum(p.numel() for p in predictor.parameters()) == parameters
    assert len(predictor.state_dict()) == 8 + 12 * depth


def test_the_names_in_the_state_dict_are_the_official_ones(tiny_encoder: EncoderFactory) -> None:
    names = list(Predictor(tiny_encoder(), 16, 1).state_dict())
    assert names[:4] == ["mask_token", "predictor_pos_embed", "predictor_embed.weight", "predictor_embed.bias"]
    assert names[4] == "predictor_blocks.0.norm1.weight"
    ends = [f"predictor_{layer}.{part}" for layer in ("norm", "proj") for part in ("weight", "bias")]
    assert names[-4:] == ends


def test_another_grid_uses_resampled_positions(predictor: Predictor) -> None:
    grid = (1, 3, 6)
    tokens, context, targets = torch.randn(1, 2, 32), torch.tensor([[0, 17]]), torch.tensor([[[5, 11]]])
    positions = fit_positions(predictor.predictor_pos_embed, predictor.grid, grid)[0]
    slow = naive(predictor, tokens, context, targets, positions)
    torch.testing.assert_close(predictor(tokens, context, targets, grid=grid), slow, rtol=0, atol=1e-5)


def test_only_the_sizes_of_the_encoder_are_taken(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder()
    predictor = Predictor(encoder, 16, 1)
    assert not {id(p) for p in predictor.parameters()} & {id(p) for p in encoder.parameters()}
    assert encoder not in set(predictor.modules())


# ---------------------------------------------------------------------- clips

CLIP_CONTEXT = torch.tensor([[0, 1, 20, 5, 31], [2, 3, 8, 9, 12]])
CLIP_TARGETS = torch.tensor([[[10, 11], [14, 30], [2, 3]], [[0, 1], [4, 29], [10, 14]]])


@pytest.fixture
def video_predictor(tiny_encoder: EncoderFactory) -> Callable[..., Predictor]:
    def build(positions: Any, **overrides: Any) -> Predictor:
        encoder = tiny_encoder(num_frames=4, tubelet_size=2, positions=positions)
        settings = {"embed_dim": 24, "depth": 2, "num_heads": 3, "init_std": None, "num_mask_tokens": 2}
        return Predictor(encoder, **{**settings, "mask_token_std": 0.5, **overrides})

    return build


def naive_rotation(places: list[int], grid: Grid, layout: str) -> Rotation:
    """Fourteen channels: four each for time, height and width, with frequencies 1 and 1/100, and two that stay."""
    angles = []
    for place in places:
        row = []
        for coordinate in (place // (grid[1] * grid[2]), place // grid[2] % grid[1], place % grid[2]):
            fast, slow = float(coordinate), coordinate / 100
            row += [fast, slow, fast, slow] if layout == "tiled" else [fast, fast, slow, slow]
        angles.append([*row, 0.0, 0.0])
    angle = torch.tensor(angles)[None, None]
    return Rotation(angle.cos(), angle.sin())


def naive_rotary(predictor: Predictor, tokens: Tensor, number: int, grid: Grid, targets: Tensor) -> Tensor:
    samples = []
    for b in range(len(tokens)):
        blocks = []
        for block in targets[b]:
            asked = predictor.mask_tokens[number][0].expand(len(block), -1)
            x = torch.cat([predictor.predictor_embed(tokens[b]), asked]).unsqueeze(0)
            places = [*CLIP_CONTEXT[b].tolist(), *block.tolist()]
            for layer in predictor.predictor_blocks:
                x = layer(x, naive_rotation(places, grid, predictor.positions.layout))
            blocks.append(predictor.predictor_proj(predictor.predictor_norm(x)[0, tokens.shape[1] :]))
        samples.append(torch.stack(blocks))
    return torch.stack(samples)


@pytest.mark.parametrize("layout", ["interleaved", "tiled"])
@pytest.mark.parametrize("grid", [(2, 4, 4), (4, 2, 4), (3, 5, 3)])
def test_with_rotary_positions_it_equals_a_loop_also_in_gradient(
    video_predictor: Callable[..., Predictor], layout: Any, grid: Grid
) -> None:
    predictor, weights = video_predictor(RoPE(layout=layout), embed_dim=42), torch.randn(2, 3, 2, 32)
    tokens = torch.randn(2, 5, 32, requires_grad=True)
    used = [p for name, p in predictor.named_parameters() if name != "mask_tokens.0"]
    fast = predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, 1, grid)
    slow = naive_rotary(predictor, tokens, 1, grid, CLIP_TARGETS)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    inputs = [tokens, *used]
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((slow * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
def test_the_grid_says_where_the_tokens_are(video_predictor: Callable[..., Predictor], positions: Any) -> None:
    predictor, tokens = video_predictor(positions), torch.randn(2, 5, 32)
    plain = predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS)
    assert torch.equal(predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, grid=(2, 4, 4)), plain)
    assert (predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, grid=(4, 4, 2)) - plain).abs().max() > 1e-3


def test_with_a_table_another_grid_of_a_clip_uses_resampled_positions(
    video_predictor: Callable[..., Predictor],
) -> None:
    predictor, grid = video_predictor(SinCos3D(), num_mask_tokens=None), (4, 3, 5)
    assert torch.equal(predictor.predictor_pos_embed, SinCos3D().table((2, 4, 4), 24))
    tokens = torch.randn(2, 5, 32)
    positions = SinCos3D().fit(predictor.predictor_pos_embed, (2, 4, 4), grid)[0]
    slow = naive(predictor, tokens, CLIP_CONTEXT, CLIP_TARGETS, positions)
    torch.testing.assert_close(predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, grid=grid), slow, rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
def test_blocks_of_clips_do_not_see_each_other(video_predictor: Callable[..., Predictor], positions: Any) -> None:
    predictor, tokens = video_predictor(positions), torch.randn(2, 5, 32)
    together = predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS)
    for m in range(3):
        alone = predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS[:, m : m + 1])
        torch.testing.assert_close(together[:, m : m + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
def test_the_order_of_context_and_targets_does_not_matter(
    video_predictor: Callable[..., Predictor], positions: Any
) -> None:
    predictor, tokens = video_predictor(positions), torch.randn(2, 5, 32)
    order, reverse = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([1, 0])
    mixed = predictor(tokens[:, order], CLIP_CONTEXT[:, order], CLIP_TARGETS[..., reverse])
    straight = predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS)
    torch.testing.assert_close(mixed[:, :, reverse], straight, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- mask tokens


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
@pytest.mark.parametrize("family", [0, 1, 2, 5])
def test_each_family_has_its_mask_token_counted_round(
    video_predictor: Callable[..., Predictor], positions: Any, family: int
) -> None:
    predictor, tokens = video_predictor(positions, num_mask_tokens=3), torch.randn(2, 5, 32)
    plain = predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, family)
    plain.sum().backward()
    got = [token.grad is not None and bool(token.grad.any()) for token in predictor.mask_tokens]
    assert got == [number == family % 3 for number in range(3)]
    torch.nn.init.ones_(predictor.mask_tokens[family % 3])
    assert (predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, family) - plain).abs().max() > 1e-3


def test_a_single_mask_token_serves_every_family(video_predictor: Callable[..., Predictor]) -> None:
    predictor, tokens = video_predictor(RoPE(), num_mask_tokens=None), torch.randn(2, 5, 32)
    first, second = (predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, family) for family in (0, 1))
    assert torch.equal(first, second)
    assert predictor.mask_token.shape == (1, 1, 24)


def test_the_mask_tokens_are_all_the_same_where_they_start_at_zero(video_predictor: Callable[..., Predictor]) -> None:
    predictor = video_predictor(SinCos3D(), mask_token_std=0.0)
    assert [token.shape for token in predictor.mask_tokens] == [(1, 1, 24)] * 2
    assert not any(token.any() for token in predictor.mask_tokens)
    wide = video_predictor(SinCos3D(), mask_token_std=0.3, embed_dim=600)
    assert wide.mask_tokens[1].std().item() == pytest.approx(0.3, rel=0.15)
    assert not torch.equal(*wide.mask_tokens)


def test_the_names_of_mask_tokens_are_the_official_ones(video_predictor: Callable[..., Predictor]) -> None:
    names = list(video_predictor(SinCos3D()).state_dict())
    assert {"mask_tokens.0", "mask_tokens.1", "predictor_pos_embed"} <= set(names)
    assert "mask_token" not in names
    rotary = list(video_predictor(RoPE()).state_dict())
    assert set(names) - set(rotary) == {"predictor_pos_embed"}


@pytest.mark.parametrize(
    ("size", "mask_tokens", "heads", "positions", "parameters"),
    [
        ("large", 2, None, SinCos3D(), 22_082_944),
        ("huge", 2, None, SinCos3D(), 22_279_808),
        ("large", 10, 12, RoPE(), 22_086_016),
        ("huge", 10, 12, RoPE(), 22_282_880),
        ("giant_xformers", 10, 12, RoPE(), 22_381_312),
    ],
)
def test_the_published_predictors_of_clips_have_the_published_parameter_counts(
    size: str, mask_tokens: int, heads: int | None, positions: Any, parameters: int
) -> None:
    settings: dict[str, Any] = {**SIZES[size], "depth": 1, "num_frames": 16, "tubelet_size": 2, "positions": positions}
    with torch.device("meta"):
        predictor = Predictor(VisionTransformer(**settings), 384, 12, heads, num_mask_tokens=mask_tokens)
    assert sum(p.numel() for p in predictor.parameters()) == parameters
    assert {b.attn.num_heads for b in predictor.predictor_blocks} == {heads or 16}


def test_options_reach_every_block(video_predictor: Callable[..., Predictor]) -> None:
    options = BlockOptions(swiglu=True, drop_path=0.2, checkpoint_activations=True)
    predictor = video_predictor(RoPE(), blocks=options, num_mask_tokens=1)
    assert [block.drop_path.rate for block in predictor.predictor_blocks] == pytest.approx([0.0, 0.2])
    assert {block.mlp.fc3.in_features for block in predictor.predictor_blocks} == {64}
    predictor(torch.randn(2, 5, 32), CLIP_CONTEXT, CLIP_TARGETS).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in predictor.parameters())


# ---------------------------------------------------------------------- noised targets


@pytest.fixture
def fixed_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def fix(steps: list[int], noise: float) -> None:
        monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor(steps))
        monkeypatch.setattr(torch, "randn_like", lambda x: torch.full_like(x, noise))

    return fix


def test_noise_follows_the_published_schedule(fixed_draws: Callable[..., None]) -> None:
    steps, kept, x = [0, 1, 7, 999], [], torch.randn(4, 2, 3, 8)
    for step in steps:
        product = 1.0
        for i in range(step + 1):
            product *= 1.0 - (0.5 + 0.5 * i / 999)
        kept.append(product)
    assert kept[:2] == pytest.approx([0.5, 0.5 * (0.5 - 0.5 / 999)])
    assert kept[3] == 0.0
    fixed_draws(steps, 0.0)
    signal = TargetNoise()(x)
    fixed_draws(steps, 1.0)
    noise = TargetNoise()(x) - signal
    for b in range(4):
        expected = math.sqrt(kept[b]) * F.layer_norm(x[b], (8,))
        torch.testing.assert_close(signal[b], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(noise[b], torch.full((2, 3, 8), math.sqrt(1.0 - kept[b])), rtol=0, atol=1e-5)


def test_noise_takes_as_much_variance_as_the_target_loses() -> None:
    x = 5.0 + 3.0 * torch.randn(400, 4, 64)
    noised, clean = TargetNoise(first=0.36, last=0.36, steps=1)(x), F.layer_norm(x, (64,))
    assert noised.var().item() == pytest.approx(1.0, rel=0.02)
    assert (noised * clean).mean().item() == pytest.approx(0.8, rel=0.02)  # sqrt(1 - 0.36)
    assert (noised - 0.8 * clean).std().item() == pytest.approx(0.6, rel=0.02)


def test_each_sample_has_its_amount_of_noise_and_each_token_its_noise() -> None:
    x = torch.randn(60, 2, 3, 16)
    noised, clean = TargetNoise(first=0.0, last=1.0, steps=2)(x), F.layer_norm(x, (16,))
    same = (noised - clean).abs().amax(dim=-1) < 1e-5  # (sample, block, token): nothing or everything is noise
    assert torch.equal(same.flatten(1).all(dim=1), same.flatten(1).any(dim=1))
    assert 15 <= int(same[:, 0, 0].sum()) <= 45
    pure = noised[~same[:, 0, 0]].flatten(0, 2)
    assert torch.cdist(pure, pure).fill_diagonal_(9.0).min() > 0.1


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
def test_noised_targets_stand_in_place_of_mask_tokens(
    video_predictor: Callable[..., Predictor], positions: Any, fixed_draws: Callable[..., None]
) -> None:
    predictor = video_predictor(positions, target_noise=TargetNoise())
    assert not [name for name, _ in predictor.named_parameters() if name.startswith("mask_token")]
    with_token = video_predictor(positions, num_mask_tokens=1)
    with_token.load_state_dict(predictor.state_dict(), strict=False)
    tokens, true_targets = torch.randn(2, 5, 32), torch.randn(2, 3, 2, 32)
    fixed_draws([1], 0.25)
    for b in range(2):
        shown = (tokens[b : b + 1], CLIP_CONTEXT[b : b + 1])
        for target, truth in zip(CLIP_TARGETS[b].flatten(), true_targets[b].flatten(0, 1), strict=True):
            asked = target.reshape(1, 1, 1)  # one target alone: what is put in its place is like a mask token
            clean, kept = F.layer_norm(predictor.predictor_embed(truth), (24,)), 0.5 * (0.5 - 0.5 / 999)
            with_token.mask_tokens[0].data[:] = math.sqrt(kept) * clean + math.sqrt(1.0 - kept) * 0.25
            noised = predictor(*shown, asked, true_targets=truth.reshape(1, 1, 1, 32))
            torch.testing.assert_close(noised, with_token(*shown, asked), rtol=0, atol=1e-5)
    fixed_draws([1, 0], 0.25)
    assert predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, true_targets=true_targets).shape == (2, 3, 2, 32)


def test_without_true_targets_a_predictor_of_noised_targets_says_what_it_needs(
    video_predictor: Callable[..., Predictor],
) -> None:
    predictor = video_predictor(SinCos3D(), target_noise=TargetNoise())
    with pytest.raises(ValueError, match="a predictor with target_noise needs true_targets"):
        predictor(torch.randn(2, 5, 32), CLIP_CONTEXT, CLIP_TARGETS)


def test_true_targets_are_not_read_where_there_are_mask_tokens(video_predictor: Callable[..., Predictor]) -> None:
    predictor, tokens = video_predictor(RoPE()), torch.randn(2, 5, 32)
    told = predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS, true_targets=torch.randn(2, 3, 2, 32))
    assert torch.equal(told, predictor(tokens, CLIP_CONTEXT, CLIP_TARGETS))


# ---------------------------------------------------------------------- samples with different numbers of tokens

LONG_CONTEXT = torch.tensor([[0, 1, 20, 5, 31], [2, 3, -1, -1, -1]])
LONG_TARGETS = torch.tensor([[[10, 11, -1], [14, 30, 6]], [[0, -1, -1], [4, 29, 16]]])


def of_sample(index: Tensor, b: int) -> Tensor:
    """A sample's indices, or those of one of its blocks, without padding."""
    return index[b][index[b] >= 0].unsqueeze(0)


@pytest.mark.parametrize("blocks", [BlockOptions(), EnergyBlocks(alpha=0.5)])
@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
@pytest.mark.parametrize("padding", ["context", "targets", "both"])
def test_samples_and_blocks_of_different_lengths_equal_each_alone_also_in_gradient(
    video_predictor: Callable[..., Predictor], blocks: Any, positions: Any, padding: str
) -> None:
    predictor = video_predictor(positions, blocks=blocks)
    context = LONG_CONTEXT if padding != "targets" else CLIP_CONTEXT
    targets = LONG_TARGETS if padding != "context" else CLIP_TARGETS
    tokens = torch.randn(2, 5, 32, requires_grad=True)
    together = predictor(tokens, padded(context), padded(targets), 1, (2, 4, 4))
    assert torch.equal(predictor(tokens, context, targets, 1, (2, 4, 4)), together)  # the CPU can look for padding
    assert not together[targets < 0].any()
    alone = []
    for b in range(2):
        shown = of_sample(context, b)
        for block in targets[b]:
            given = tokens[b : b + 1, : shown.shape[1]]
            alone.append(predictor(given, shown, of_sample(block[None], 0)[None], 1, (2, 4, 4))[0, 0])
    expected = torch.cat(alone)
    torch.testing.assert_close(together[targets >= 0], expected, rtol=0, atol=1e-5)
    weights, inputs = torch.randn(expected.shape), [tokens, *predictor.predictor_blocks.parameters()]
    gradients = [
        torch.autograd.grad((predicted * weights).sum(), inputs) for predicted in (together[targets >= 0], expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    assert not gradients[0][0][context < 0].any()


def test_noised_targets_of_different_lengths_stand_in_place_of_mask_tokens(
    video_predictor: Callable[..., Predictor],
) -> None:
    class Plain(TargetNoise):
        def __call__(self, x: Tensor) -> Tensor:
            return x

    predictor = video_predictor(RoPE(), target_noise=Plain())
    tokens, true = torch.randn(2, 5, 32), torch.randn(2, 2, 3, 32)
    together = predictor(tokens, LONG_CONTEXT, LONG_TARGETS, true_targets=true)
    for b in range(2):
        shown = of_sample(LONG_CONTEXT, b)
        for m in range(2):
            asked = of_sample(LONG_TARGETS[b], m)
            given = tokens[b : b + 1, : shown.shape[1]], shown, asked[None]
            alone = predictor(*given, true_targets=true[b : b + 1, m : m + 1, : asked.shape[1]])
            torch.testing.assert_close(together[b, m, : asked.shape[1]], alone[0, 0], rtol=0, atol=1e-5)

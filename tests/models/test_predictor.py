from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_lightning.models import SIZES, Predictor, VisionTransformer
from jepa_lightning.models.positions import fit_positions

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

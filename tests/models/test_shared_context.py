"""A predictor whose context passes through the blocks once for all blocks of targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_lightning.masking import padded
from jepa_lightning.models import BlockOptions, EnergyBlocks, Predictor, RoPE, VisionTransformer

EncoderFactory = Callable[..., VisionTransformer]
CONTEXT = torch.tensor([[0, 1, 4, 5, 6], [2, 3, 8, 9, 12]])
TARGETS = torch.tensor([[[10, 11], [14, 15], [2, 3]], [[0, 1], [4, 5], [10, 14]]])


def _twin(predictor: Predictor, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
    """One sequence with a table of who attends to whom."""
    nc, (blocks, count) = context.shape[1], targets.shape[1:]
    owner = torch.cat([torch.full((nc,), -1), torch.arange(blocks).repeat_interleave(count)])
    allowed = (owner[None, :] == -1) | (owner[:, None] == owner[None, :])  # the context, or the own block
    index = torch.cat([context, targets.flatten(1)], dim=1)
    x = torch.cat([predictor.predictor_embed(tokens), predictor.mask_token.expand(len(tokens), blocks * count, -1)], 1)
    if predictor.predictor_pos_embed is not None:
        x = x + predictor.predictor_pos_embed[0][index]
    rotation = predictor.positions.rotation(index, predictor.grid, x.shape[-1] // predictor.num_heads)
    for block in predictor.predictor_blocks:
        x = block(x, rotation, allowed=allowed[None, None])
    x = predictor.predictor_proj(predictor.predictor_norm(x))
    return x[:, nc:].unflatten(1, (blocks, count))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_it_equals_one_sequence_with_a_mask_also_in_gradient(
    tiny_encoder: EncoderFactory, rotary: bool, again: bool
) -> None:
    encoder = tiny_encoder(positions=RoPE()) if rotary else tiny_encoder()
    options = BlockOptions(checkpoint_activations=again)
    predictor = Predictor(encoder, 24, depth=3, num_heads=3, init_std=None, blocks=options, shared_context=True)
    tokens = torch.randn(2, 5, encoder.embed_dim, requires_grad=True)
    weight = torch.randn(2, 3, 2, encoder.embed_dim)
    given = []
    for function in (predictor, lambda *a: _twin(predictor, *a)):
        predicted = function(tokens, CONTEXT, TARGETS)
        names, parameters = zip(*predictor.named_parameters(), strict=True)
        given.append((predicted, *torch.autograd.grad((predicted * weight).sum(), (tokens, *parameters))))
    for name, ours, twin in zip(("prediction", "context", *names), *given, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_with_one_block_the_targets_of_one_layer_are_those_of_a_context_of_its_own(
    tiny_encoder: EncoderFactory,
) -> None:
    encoder = tiny_encoder()
    own = Predictor(encoder, 24, depth=1, num_heads=3, init_std=None)
    shared = Predictor(encoder, 24, depth=1, num_heads=3, init_std=None, shared_context=True)
    shared.load_state_dict(own.state_dict())
    tokens = torch.randn(2, 5, encoder.embed_dim)
    # In one layer a target attends to the same tokens; in the next the context has not seen the targets.
    torch.testing.assert_close(shared(tokens, CONTEXT, TARGETS), own(tokens, CONTEXT, TARGETS))


def test_masks_of_several_sizes_and_other_blocks_are_refused(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder()
    predictor = Predictor(encoder, 24, depth=1, num_heads=3, shared_context=True)
    short = torch.tensor([[0, 1, 4, 5, 6], [2, 3, 8, -1, -1]])
    with pytest.raises(ValueError, match="per_sample false"):
        predictor(torch.randn(2, 5, encoder.embed_dim), padded(short), TARGETS)
    with pytest.raises(ValueError, match="needs Transformer blocks, not EnergyBlocks"):
        Predictor(encoder, 24, depth=1, num_heads=3, blocks=EnergyBlocks(), shared_context=True)

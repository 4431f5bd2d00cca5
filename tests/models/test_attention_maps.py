from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.models import BlockOptions, Predictor, RoPE, VisionTransformer
from jepa_lightning.models.attention_maps import attention_depth, attention_maps, softmax_attention
from jepa_lightning.models.energy_transformer import EnergyBlocks
from jepa_lightning.models.layers import Attention
from jepa_lightning.models.positions import Rotation

EncoderFactory = Callable[..., VisionTransformer]


@torch.no_grad()
def naive(layer: Attention, x: Tensor, rotation: Rotation | None = None) -> Tensor:
    """One batch entry, head, query and key after the other, in float64."""
    batch, tokens, dim = x.shape
    size = dim // layer.num_heads
    weight, bias = layer.qkv.weight.double(), layer.qkv.bias.double()
    maps = torch.zeros(batch, layer.num_heads, tokens, tokens, dtype=torch.float64)
    for b in range(batch):
        for h in range(layer.num_heads):
            rows = []
            for offset in (0, dim):  # queries, keys
                part = slice(offset + h * size, offset + (h + 1) * size)
                rows.append(x[b].double() @ weight[part].T + bias[part])
            if rotation is not None:
                rows = [turned(row, rotation, b) for row in rows]
            for i in range(tokens):
                scores = [float(rows[0][i] @ rows[1][j]) / math.sqrt(size) for j in range(tokens)]
                shares = [math.exp(score) for score in scores]
                maps[b, h, i] = torch.tensor([share / sum(shares) for share in shares])
    return maps


def turned(row: Tensor, rotation: Rotation, b: int) -> Tensor:
    """Pairs of channels as complex numbers, multiplied with exp(i angle)."""
    cos, sin = (part[min(b, len(part) - 1), 0].double() for part in rotation)
    pairs = torch.complex(row[:, ::2], row[:, 1::2]) * torch.complex(cos[:, ::2], sin[:, ::2])
    return torch.view_as_real(pairs).flatten(1)


def inputs_of_layers(network: nn.Module, *inputs: Tensor) -> list[tuple[Attention, tuple[Tensor, ...]]]:
    seen: list[tuple[Attention, tuple[Tensor, ...]]] = []
    layers = [layer for layer in network.modules() if isinstance(layer, Attention)]
    hooks = [layer.register_forward_pre_hook(lambda layer, args: seen.append((layer, args))) for layer in layers]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("positions", [None, RoPE()])
def test_the_maps_of_an_encoder_equal_a_naive_softmax(tiny_encoder: EncoderFactory, positions: RoPE | None) -> None:
    encoder, images = tiny_encoder(positions=positions), torch.randn(2, 3, 32, 32)
    maps = attention_maps(encoder, images, blocks=(0, 1))
    for number, (layer, arguments) in enumerate(inputs_of_layers(encoder, images)):
        torch.testing.assert_close(maps[number].double(), naive(layer, *arguments[:2]), atol=1e-5, rtol=0)
        assert float(maps[number].std(dim=-1).max()) > 1e-3  # not uniform: that every softmax would be equal to


def test_the_maps_of_a_predictor_on_a_masked_context_equal_a_naive_softmax(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder(positions=RoPE())
    predictor = Predictor(encoder, embed_dim=24, depth=2, init_std=None)
    context, targets = torch.tensor([[0, 3, 5], [1, 2, 9]]), torch.tensor([[[4, 6], [7, 8]], [[3, 4], [5, 6]]])
    tokens = torch.randn(2, 3, 32)
    maps = attention_maps(predictor, tokens, context, targets, blocks=[1])[0]
    assert maps.shape == (4, 4, 5, 5)  # B * M sequences of three context and two mask tokens
    layer, arguments = inputs_of_layers(predictor, tokens, context, targets)[1]
    torch.testing.assert_close(maps.double(), naive(layer, *arguments[:2]), atol=1e-5, rtol=0)


def test_the_values_mixed_by_the_maps_are_what_the_fused_attention_returns(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(positions=RoPE()), torch.randn(2, 3, 32, 32)
    context = torch.tensor([[0, 3, 5, 11], [1, 2, 9, 15]])
    maps = attention_maps(encoder, images, context, blocks=[1])[0]
    layer, (x, *rest) = inputs_of_layers(encoder, images, context)[1]
    values = layer.qkv(x).reshape(2, 4, 3, 4, 8)[:, :, 2].transpose(1, 2)
    mixed = layer.proj((maps @ values).transpose(1, 2).reshape(2, 4, 32))
    torch.testing.assert_close(mixed, layer(x, *rest), atol=1e-5, rtol=1e-5)


def test_each_token_attends_with_weights_that_sum_to_one() -> None:
    maps = softmax_attention(torch.randn(3, 2, 5, 8), torch.randn(3, 2, 7, 8))
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 2, 5))


def test_nobody_attends_to_a_token_that_is_not_kept() -> None:
    query, key = torch.randn(2, 2, 2, 5, 8)
    keep = torch.tensor([[True] * 3 + [False] * 2, [True] * 5]).view(2, 1, 1, 5)
    maps = softmax_attention(query, key, keep)
    assert float(maps[0, ..., 3:].max()) == 0.0
    torch.testing.assert_close(maps[0], F.pad(softmax_attention(query[:1], key[:1, :, :3])[0], (0, 2)))
    torch.testing.assert_close(maps[1], softmax_attention(query[1:], key[1:])[0])


def test_sequences_of_different_lengths_have_the_maps_of_each_alone(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(positions=RoPE()), torch.randn(2, 3, 32, 32)
    context = torch.tensor([[0, 3, 5, 11], [1, 2, -1, -1]])
    maps = attention_maps(encoder, images, context, blocks=[1])[0]
    torch.testing.assert_close(maps[:1], attention_maps(encoder, images[:1], context[:1], blocks=[1])[0])
    alone = attention_maps(encoder, images[1:], context[1:, :2], blocks=[1])[0]
    torch.testing.assert_close(maps[1:, :, :2], F.pad(alone, (0, 2)))


@pytest.mark.parametrize("attend_to_self", [True, False])
def test_the_steps_of_an_energy_transformer_have_maps(tiny_encoder: EncoderFactory, attend_to_self: bool) -> None:
    encoder = tiny_encoder(depth=3, blocks=EnergyBlocks(attend_to_self=attend_to_self), init_std=0.2)
    images = torch.randn(2, 3, 32, 32)
    maps = attention_maps(encoder, images, blocks=[0, 2])
    layer = encoder.blocks[0].attn
    q, k = layer.qk(encoder.blocks[0].norm(encoder.patch_embed(images) + encoder.pos_embed)).chunk(2, dim=-1)
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        scores = layer.log_beta[head].exp() * q[0, :, part] @ k[0, :, part].T
        if not attend_to_self:
            scores.fill_diagonal_(-torch.inf)
        torch.testing.assert_close(maps[0][0, head], scores.softmax(dim=-1), atol=1e-5, rtol=0)
    assert float((maps[1] - maps[0]).abs().max()) > 1e-3  # another step, another map
    assert attention_depth(encoder) == 3


COMPILED = """
import torch
from jepa_lightning.models import VisionTransformer
from jepa_lightning.models.attention_maps import attention_maps
torch.manual_seed(0)
encoder = VisionTransformer(32, 8, 3, 32, 2, 4, init_std=None)
images = torch.randn(2, 3, 32, 32)
expected = attention_maps(encoder, images)[0]
encoder.compile(backend="eager")
trained = encoder(images)  # without hooks: the compiled code does not see later ones
assert torch.equal(attention_maps(encoder, images)[0], expected)
assert torch.equal(encoder(images), trained)
"""


def test_a_compiled_network_has_the_same_maps() -> None:
    # In a process of its own, because torch.compile cannot follow the checks of shapes that are made under pytest.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_checkpointed_activations_change_nothing(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(), torch.randn(2, 3, 32, 32)
    again = tiny_encoder(blocks=BlockOptions(checkpoint_activations=True))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(attention_maps(again.train(), images)[0], attention_maps(encoder, images)[0])


def test_the_maps_of_half_precision_are_in_single_precision(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(), torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention_maps(encoder, images)[0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, attention_maps(encoder, images)[0], atol=0.02, rtol=0)


def test_nothing_stays_behind(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder().train(), torch.randn(1, 3, 32, 32)
    maps = attention_maps(encoder, images, blocks=[-1, 0, -1])
    assert torch.equal(maps[0], maps[2])
    assert not maps[0].requires_grad
    assert encoder.training
    assert not any(layer._forward_pre_hooks for layer in encoder.modules())
    with pytest.raises(ValueError, match="patch"):
        attention_maps(encoder, torch.randn(1, 3, 33, 33))
    assert not any(layer._forward_pre_hooks for layer in encoder.modules())


def test_only_the_chosen_block_is_computed(tiny_encoder: EncoderFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "jepa_lightning.models.attention_maps.softmax_attention", lambda query, key, keep: calls.append(1) or query
    )
    attention_maps(tiny_encoder(depth=5), torch.randn(1, 3, 32, 32), blocks=[2])
    assert len(calls) == 1


def test_a_block_that_does_not_exist_and_a_network_without_attention_are_refused(tiny_encoder: EncoderFactory) -> None:
    with pytest.raises(ValueError, match="no block 2 among 2: use blocks from 0 to 1"):
        attention_maps(tiny_encoder(), torch.randn(1, 3, 32, 32), blocks=[2])
    with pytest.raises(ValueError, match="Sequential has no softmax attention"):
        attention_maps(nn.Sequential(nn.Linear(3, 3)), torch.randn(1, 3))
    assert attention_depth(nn.Linear(3, 3)) == 0


def test_a_layer_whose_queries_are_zero_attends_to_all_alike(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder()
    nn.init.zeros_(encoder.blocks[0].attn.qkv.weight)
    maps = attention_maps(encoder, torch.randn(1, 3, 32, 32), blocks=[0])[0]
    torch.testing.assert_close(maps, torch.full((1, 4, 16, 16), 1 / 16))

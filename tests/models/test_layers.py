from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.models.layers import MLP, NORM_EPS, Attention, Block, init_weights


def naive_attention(layer: Attention, x: Tensor) -> Tensor:
    size = x.shape[-1] // layer.num_heads
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(layer.num_heads):
        part = slice(h * size, (h + 1) * size)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    return layer.proj(torch.cat(heads, dim=-1))


def test_attention_equals_a_naive_softmax_also_in_gradient() -> None:
    fast = Attention(24, 3)
    naive = copy.deepcopy(fast)
    x = torch.randn(2, 7, 24, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 7, 24)
    (fast(x) * weights).sum().backward()
    (naive_attention(naive, y) * weights).sum().backward()
    torch.testing.assert_close(fast(x), naive_attention(naive, y), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-5)
    for a, b in zip(fast.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-5)


def test_attention_has_no_order() -> None:
    layer, x, order = Attention(16, 2), torch.randn(3, 6, 16), torch.randperm(6)
    torch.testing.assert_close(layer(x)[:, order], layer(x[:, order]), rtol=0, atol=1e-6)


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    block, x = Block(16, 2), torch.randn(3, 6, 16)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]), rtol=0, atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="embed_dim 16 is not divisible by num_heads 3"):
        Attention(16, 3)


def test_the_mlp_uses_the_exact_gelu() -> None:
    layer, x = MLP(4, 8), torch.randn(5, 4)
    hidden = layer.fc1(x)
    gelu = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
    torch.testing.assert_close(layer(x), layer.fc2(gelu), rtol=0, atol=1e-6)


def test_a_block_is_two_residual_pre_norm_layers() -> None:
    block, x = Block(8, 2, mlp_ratio=2.0), torch.randn(2, 5, 8)

    def norm(values: Tensor) -> Tensor:
        centred = values - values.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    y = x + naive_attention(block.attn, norm(x))
    torch.testing.assert_close(block(x), y + block.mlp(norm(y)), rtol=0, atol=1e-5)
    assert block.norm1.eps == block.norm2.eps == NORM_EPS == 1e-6


@pytest.mark.parametrize(("dim", "ratio", "hidden"), [(64, 4.0, 256), (1408, 48 / 11, 6144), (10, 1.55, 15)])
def test_the_hidden_width_is_rounded_down(dim: int, ratio: float, hidden: int) -> None:
    with torch.device("meta"):
        assert Block(dim, 2, ratio).mlp.fc1.out_features == hidden


def test_init_draws_weights_with_the_std_asked_for_and_clears_biases() -> None:
    block = Block(128, 4)
    init_weights(block, std=0.05)
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        assert layer.weight.std().item() == pytest.approx(0.05, rel=0.03)
        assert layer.weight.mean().abs().item() < 0.002
        assert not layer.bias.any()


def test_init_without_a_std_is_xavier() -> None:
    layer = nn.Sequential(nn.Linear(200, 600))
    init_weights(layer, std=None)
    assert layer[0].weight.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.03)


def test_init_resets_the_norms() -> None:
    block = Block(8, 2)
    nn.init.constant_(block.norm1.weight, 3.0)
    nn.init.constant_(block.norm2.bias, 3.0)
    init_weights(block)
    assert (block.norm1.weight == 1).all()
    assert not block.norm2.bias.any()


def test_depth_rescale_divides_only_the_output_projections_by_the_root_of_twice_the_depth() -> None:
    def built(rescale: bool) -> nn.ModuleDict:
        torch.manual_seed(5)
        stack = nn.ModuleDict({"blocks": nn.ModuleList(Block(16, 2) for _ in range(3)), "head": nn.Linear(16, 4)})
        init_weights(stack, depth_rescale=rescale)
        return stack

    plain, rescaled = dict(built(False).named_parameters()), dict(built(True).named_parameters())
    for name, weight in plain.items():
        divided = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        factor = math.sqrt(2.0 * (int(name.split(".")[1]) + 1)) if divided else 1.0
        torch.testing.assert_close(rescaled[name], weight / factor, rtol=1e-6, atol=0)

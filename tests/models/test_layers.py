from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.models.layers import (
    MLP,
    NORM_EPS,
    Attention,
    Block,
    BlockOptions,
    DropPath,
    SwiGLU,
    init_weights,
)
from jepa_lightning.models.packing import Packing
from jepa_lightning.models.positions import RoPE, Rotation


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


@pytest.mark.parametrize("layout", ["interleaved", "tiled"])
def test_attention_turns_queries_and_keys_but_not_values(layout: Any) -> None:
    layer, x, index = Attention(24, 3), torch.randn(2, 4, 24), torch.tensor([[0, 5, 9, 17], [3, 8, 1, 12]])
    rotation = RoPE(layout=layout).rotation(index, (2, 3, 3), 8)
    q, k, v = layer.qkv(x).chunk(3, dim=-1)

    def turned(row: Tensor, b: int, n: int) -> Tensor:
        cos, sin = rotation.cos[b, 0, n], rotation.sin[b, 0, n]
        other = [-row[c + 1] if c % 2 == 0 else row[c - 1] for c in range(8)]
        return row * cos + torch.stack(other) * sin

    mixed = torch.zeros(2, 4, 24)
    for b in range(2):
        for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
            queries, keys = ([turned(rows[b, n, part], b, n) for n in range(4)] for rows in (q, k))
            for n in range(4):
                weights = torch.stack([queries[n] @ key / math.sqrt(8) for key in keys]).softmax(dim=0)
                mixed[b, n, part] = sum(w * v[b, m, part] for m, w in enumerate(weights))
    torch.testing.assert_close(layer(x, rotation), layer.proj(mixed), rtol=0, atol=1e-5)
    assert (layer(x, rotation) - layer(x)).abs().max() > 1e-3


def test_a_block_passes_the_rotation_to_its_attention() -> None:
    block, x = Block(24, 3), torch.randn(1, 4, 24)
    rotation = RoPE().rotation(torch.arange(4).unsqueeze(0), (1, 2, 2), 8)
    y = x + block.attn(block.norm1(x), rotation)
    torch.testing.assert_close(block(x, rotation), y + block.mlp(block.norm2(y)), rtol=0, atol=1e-6)


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


# ---------------------------------------------------------------------- SwiGLU


@pytest.mark.parametrize(
    ("hidden", "width"), [(4096, 2736), (6144, 4096), (256, 176), (24, 16), (25, 16), (26, 24), (12, 8)]
)
def test_swiglu_has_two_thirds_of_the_hidden_width_rounded_up_to_a_multiple_of_eight(hidden: int, width: int) -> None:
    assert width == math.ceil(int(2 * hidden / 3) / 8) * 8
    with torch.device("meta"):
        layer = SwiGLU(10, hidden)
    assert [layer.fc1.out_features, layer.fc2.out_features, layer.fc3.in_features] == [width] * 3


def test_swiglu_equals_a_naive_loop() -> None:
    layer, x = SwiGLU(4, 12), torch.randn(3, 2, 4)
    for token, result in zip(x.flatten(0, 1), layer(x).flatten(0, 1), strict=True):
        hidden = []
        for i in range(8):
            first = token @ layer.fc1.weight[i] + layer.fc1.bias[i]
            gate = token @ layer.fc2.weight[i] + layer.fc2.bias[i]
            hidden.append(first / (1.0 + torch.exp(-first)) * gate)
        slow = layer.fc3.weight @ torch.stack(hidden) + layer.fc3.bias
        torch.testing.assert_close(result, slow, rtol=0, atol=1e-6)


def test_depth_rescale_divides_the_output_of_swiglu_and_neither_of_its_inputs() -> None:
    def built(rescale: bool) -> dict[str, Tensor]:
        torch.manual_seed(5)
        module = nn.ModuleDict({"blocks": BlockOptions(swiglu=True).build(3, 16, 2, 4.0)})
        init_weights(module, depth_rescale=rescale)
        return dict(module.named_parameters())

    plain, rescaled = built(False), built(True)
    assert "blocks.2.mlp.fc3.weight" in plain
    for name, weight in plain.items():
        divided = name.endswith(("attn.proj.weight", "mlp.fc3.weight"))
        factor = math.sqrt(2.0 * (int(name.split(".")[1]) + 1)) if divided else 1.0
        torch.testing.assert_close(rescaled[name], weight / factor, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------- drop path


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean() -> None:
    x = 1.0 + torch.rand(4000, 3, 2)
    dropped = DropPath(0.3)(x)
    gone = (dropped == 0).flatten(1)
    assert torch.equal(gone.all(dim=1), gone.any(dim=1))
    kept = ~gone[:, 0]
    torch.testing.assert_close(dropped[kept], x[kept] / 0.7)
    assert 1.0 - kept.float().mean().item() == pytest.approx(0.3, abs=0.03)  # four standard deviations
    assert dropped.mean().item() == pytest.approx(x.mean().item(), rel=0.05)


def test_drop_path_is_off_in_evaluation_and_at_rate_zero() -> None:
    x = torch.randn(50, 3, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_keeps_the_dtype() -> None:
    assert DropPath(0.5)(torch.ones(8, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("rate", [1.0, -0.1, 30.0])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"drop_path .* use 0 to below 1, not {rate}"):
        Block(8, 2, drop_path=rate)


def test_a_block_without_its_branches_is_the_identity() -> None:
    block, x = Block(8, 2, drop_path=0.5), torch.randn(64, 3, 8)
    same = (block(x) == x).flatten(1).all(dim=1)
    assert 4 <= int(same.sum()) <= 32  # a quarter: both branches left out
    assert not (block.eval()(x) == x).flatten(1).all(dim=1).any()


def test_the_rate_grows_linearly_with_the_depth() -> None:
    rates = [block.drop_path.rate for block in BlockOptions(drop_path=0.2).build(5, 8, 2, 4.0)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert [block.drop_path.rate for block in BlockOptions(drop_path=0.2).build(1, 8, 2, 4.0)] == [0.0]


# ---------------------------------------------------------------------- a stack of blocks


class Passes:
    """Counts how often the blocks are computed."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.count = 0
        for block in blocks:
            block.register_forward_pre_hook(self.another)

    def another(self, *rest: Any) -> None:
        self.count += 1


def gradients(options: BlockOptions, rotation: Rotation | None) -> tuple[Tensor, list[Tensor], Passes]:
    torch.manual_seed(4)
    blocks, x = options.build(3, 24, 3, 2.0), torch.randn(6, 4, 24, requires_grad=True)
    passes = Passes(blocks)
    (y,) = options.run(blocks, x, rotation)
    found = torch.autograd.grad(y.square().sum(), [x, *blocks.parameters()])
    return y, list(found), passes


@pytest.mark.parametrize("settings", [{}, {"drop_path": 0.5}, {"swiglu": True}])
@pytest.mark.parametrize("rotary", [False, True])
def test_checkpointed_activations_change_neither_output_nor_gradient(settings: dict[str, Any], rotary: bool) -> None:
    rotation = RoPE().rotation(torch.arange(4).unsqueeze(0), (1, 2, 2), 8) if rotary else None
    plain, wanted, once = gradients(BlockOptions(**settings), rotation)
    again, found, twice = gradients(BlockOptions(**settings, checkpoint_activations=True), rotation)
    assert (once.count, twice.count) == (3, 6)
    assert torch.equal(again, plain)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("training", "grad"), [(False, True), (True, False)])
def test_activations_are_kept_where_there_is_no_backward_pass_in_training(training: bool, grad: bool) -> None:
    options = BlockOptions(checkpoint_activations=True)
    blocks, x = options.build(2, 8, 2, 2.0).train(training), torch.randn(1, 3, 8, requires_grad=True)
    passes = Passes(blocks)
    with torch.set_grad_enabled(grad):
        (y,) = options.run(blocks, x)
    if grad:
        y.sum().backward()
    assert passes.count == 2


def test_outputs_of_inner_blocks_come_in_the_order_asked_for() -> None:
    options = BlockOptions()
    blocks, x = options.build(3, 8, 2, 2.0), torch.randn(2, 3, 8)
    steps = [x]
    for block in blocks:
        steps.append(block(steps[-1]))
    for layers, expected in (([2, 0], [3, 1]), ([-1, -3], [3, 1]), (None, [3]), ([], [])):
        found = options.run(blocks, x, layers=layers)
        assert [torch.equal(a, steps[b]) for a, b in zip(found, expected, strict=True)] == [True] * len(expected)


def test_without_blocks_tokens_stay_as_they_are() -> None:
    options, x = BlockOptions(), torch.randn(2, 3, 8)
    (found,) = options.run(options.build(0, 8, 2, 2.0), x)
    assert found is x


@pytest.mark.parametrize("number", [3, -4, 24])
def test_a_block_that_does_not_exist_is_refused_with_the_numbers_that_do(number: int) -> None:
    options = BlockOptions()
    with pytest.raises(ValueError, match=rf"layers \[0, {number}\] of 3 blocks: use numbers from 0 to 2"):
        options.run(options.build(3, 8, 2, 2.0), torch.randn(1, 2, 8), layers=[0, number])


# ---------------------------------------------------------------------- sequences of different lengths

LENGTHS = (3, 1, 5)


def packed_and_alone() -> tuple[Packing, Tensor, list[Tensor]]:
    """A packed list of three sequences, and the sequences."""
    places = torch.tensor([5 * row + column for row, length in enumerate(LENGTHS) for column in range(length)])
    x = torch.randn(1, sum(LENGTHS), 24, requires_grad=True)
    return Packing.of(places, 3, 5), x, list(x.split(LENGTHS, dim=1))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("options", [BlockOptions(), BlockOptions(swiglu=True, checkpoint_activations=True)])
def test_packed_sequences_equal_each_alone_also_in_gradient(options: BlockOptions, rotary: bool) -> None:
    blocks = options.build(2, 24, 3, 2.0)
    packing, x, alone = packed_and_alone()
    index = torch.randint(16, (3, 5))
    weights = torch.randn(x.shape)
    first, together = options.run(blocks, x, turned(index, rotary), packing, [0, 1])
    parts = []
    for number, (length, part) in enumerate(zip(LENGTHS, alone, strict=True)):
        parts.append(options.run(blocks, part, turned(index[number : number + 1, :length], rotary), layers=[0, 1]))
    expected = torch.cat([last for _, last in parts], dim=1)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(first, torch.cat([part for part, _ in parts], dim=1), rtol=0, atol=1e-5)
    inputs = [x, *blocks.parameters()]
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (together, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def turned(index: Tensor, rotary: bool) -> Rotation | None:
    return RoPE().rotation(index, (1, 4, 4), 8) if rotary else None


def test_drop_path_leaves_out_whole_sequences_of_a_packed_list() -> None:
    packing, _, _ = packed_and_alone()
    seen = set()
    for _ in range(40):
        rows = DropPath(0.5)(torch.ones(1, sum(LENGTHS), 2), packing).split(LENGTHS, dim=1)
        assert all(len(row.unique()) == 1 for row in rows)
        seen.add(tuple(float(row[0, 0, 0]) for row in rows))
    assert len(seen) > 4

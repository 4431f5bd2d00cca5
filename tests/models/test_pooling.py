from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.models.layers import Block
from jepa_lightning.models.pooling import (
    PROBE_EPS,
    AttentiveClassifier,
    AttentivePooler,
    CrossAttention,
    CrossAttentionBlock,
)


def naive_norm(norm: nn.LayerNorm, row: Tensor) -> Tensor:
    centred = row - row.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def naive_block(block: CrossAttentionBlock, query: Tensor, tokens: Tensor) -> Tensor:
    """One query (D,) reads one sequence (N, D), token by token and head by head."""
    layer, dim = block.xattn, len(query)
    size = dim // layer.num_heads
    q = layer.q(query)
    keys, values = [], []
    for token in tokens:
        row = layer.kv(naive_norm(block.norm1, token))
        keys.append(row[:dim])
        values.append(row[dim:])
    read = torch.zeros(dim)
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.stack([q[part] @ key[part] / math.sqrt(size) for key in keys]).softmax(dim=0)
        read[part] = sum(w * value[part] for w, value in zip(weights, values, strict=True))
    query = query + read
    return query + block.mlp(naive_norm(block.norm2, query))


def not_trivial(module: nn.Module) -> None:
    """Biases and norms are 0 and 1 at first, which would hide that one is left out."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_the_pooler_equals_loops_over_samples_queries_heads_and_tokens_also_in_gradient(num_queries: int) -> None:
    fast = AttentivePooler(24, 3, num_queries=num_queries)
    not_trivial(fast)
    naive = copy.deepcopy(fast)
    tokens = torch.randn(2, 5, 24)
    rows = [[naive_block(naive.cross_attention_block, q, t) for q in naive.query_tokens[0]] for t in tokens]
    expected = torch.stack([torch.stack(row) for row in rows])
    found, weights = fast(tokens), torch.randn(2, num_queries, 24)
    assert found.shape == (2, num_queries, 24)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, a), b in zip(fast.named_parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_more_layers_are_self_attention_on_the_tokens_before_the_query_reads_them() -> None:
    pooler, tokens = AttentivePooler(24, 3, depth=3), torch.randn(2, 5, 24)
    not_trivial(pooler)
    assert len(pooler.blocks) == 2
    x = tokens
    for block in pooler.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    expected = torch.stack([naive_block(pooler.cross_attention_block, pooler.query_tokens[0, 0], row) for row in x])
    torch.testing.assert_close(pooler(tokens)[:, 0], expected, rtol=1e-5, atol=1e-4)


def test_every_norm_of_a_probe_has_the_released_epsilon() -> None:
    norms = [module for module in AttentivePooler(16, 2, depth=3).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 2
    assert {norm.eps for norm in norms} == {PROBE_EPS} == {1e-5}


@pytest.mark.parametrize("depth", [1, 3])
def test_the_order_of_the_tokens_does_not_matter(depth: int) -> None:
    pooler, tokens = AttentivePooler(16, 2, depth), torch.randn(2, 9, 16)
    not_trivial(pooler)
    torch.testing.assert_close(pooler(tokens[:, torch.randperm(9)]), pooler(tokens), rtol=1e-5, atol=1e-4)
    assert (pooler(tokens[:, :5]) - pooler(tokens)).abs().max() > 1e-3


def test_samples_do_not_see_each_other_and_each_query_gives_its_own_row() -> None:
    pooler, tokens = AttentivePooler(16, 2, depth=2, num_queries=3), torch.randn(3, 6, 16)
    not_trivial(pooler)
    found = pooler(tokens)
    torch.testing.assert_close(found[1:2], pooler(tokens[1:2]), rtol=0, atol=1e-5)
    with torch.no_grad():
        pooler.query_tokens[0, 1] += 1.0
    moved = (pooler(tokens) - found).abs().amax(dim=(0, 2))
    assert moved[1] > 1e-2
    assert moved[[0, 2]].max() < 1e-6


def test_the_classifier_is_a_linear_layer_on_one_query() -> None:
    classifier, tokens = AttentiveClassifier(16, 7, num_heads=2, depth=2), torch.randn(3, 6, 16)
    assert classifier.pooler.query_tokens.shape == (1, 1, 16)
    expected = classifier.pooler(tokens)[:, 0] @ classifier.linear.weight.T + classifier.linear.bias
    assert expected.shape == (3, 7)
    torch.testing.assert_close(classifier(tokens), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dim", "heads", "depth", "classes", "official", "unused"),
    [
        (1024, 16, 1, 400, 13_007_248, 1024 * 1024 + 1024),  # V-JEPA L: its file has a projection that is never applied
        (1024, 16, 4, 400, 49_746_320, 0),
        (1280, 16, 4, 400, 77_583_760, 0),
        (1408, 16, 4, 400, 93_812_624, 0),
    ],
)
def test_the_number_of_parameters_is_the_published_one(
    dim: int, heads: int, depth: int, classes: int, official: int, unused: int
) -> None:
    with torch.device("meta"):
        classifier = AttentiveClassifier(dim, classes, heads, depth)
    assert sum(p.numel() for p in classifier.parameters()) == official - unused


@pytest.mark.parametrize("depth", [1, 4])
def test_weights_start_as_in_the_official_code(depth: int) -> None:
    """Reference, section B4: std 0.02; the two last projections of layer i, from 1, divided by sqrt(2 i)."""
    pooler = AttentivePooler(192, 3, depth)
    last = pooler.cross_attention_block
    for weight in (last.xattn.q.weight, last.xattn.kv.weight, last.mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert pooler.query_tokens.std().item() == pytest.approx(0.02, rel=0.2)
    assert last.mlp.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.05)
    for number, block in enumerate(getattr(pooler, "blocks", ()), start=1):
        assert isinstance(block, Block)
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for layer in (block.attn.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
    assert not any(p.any() for name, p in pooler.named_parameters() if name.endswith("bias"))


def test_nothing_projects_what_the_query_has_read() -> None:
    assert [name for name, _ in CrossAttention(8, 2).named_children()] == ["q", "kv"]


def test_impossible_sizes_are_refused_with_the_number_and_a_way_out() -> None:
    with pytest.raises(ValueError, match="embed_dim 48 is not divisible by num_heads 5 of the probe: set num_heads"):
        AttentiveClassifier(48, 3, num_heads=5, depth=2)
    with pytest.raises(ValueError, match="a depth of at least 1, got 0"):
        AttentivePooler(48, 4, depth=0)

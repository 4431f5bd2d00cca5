"""Attentive pooling of tokens (V-JEPA section 3.3, V-JEPA 2 section 4), with the parameter names of Meta's files."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning.models.layers import MLP, Block, init_weights
from jepa_lightning.ranges import at_least

PROBE_EPS = 1e-5
"""LayerNorm epsilon of the released probes; the encoders have 1e-6."""


class CrossAttention(nn.Module):
    """Queries attend to tokens; nothing projects the result (the released V-JEPA has a projection it never uses)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"embed_dim {dim} is not divisible by num_heads {num_heads} of the probe: set num_heads to a divisor"
            )
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        """One row for each query."""
        q = self.q(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossAttentionBlock(nn.Module):
    """``q += attention(q, norm1(tokens)); q += mlp(norm2(q))``; the query itself is not normalised first."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=PROBE_EPS)
        self.xattn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=PROBE_EPS)
        self.mlp = MLP(dim, 4 * dim)

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        """One residual layer on the queries."""
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Learned queries read a sequence of tokens.

    Args:
        embed_dim: Channels of the tokens, D.
        num_heads: Attention heads.
        depth: Layers: ``depth - 1`` self-attention blocks on the tokens, then the cross-attention (V-JEPA 1,
            V-JEPA 2: 4).
        num_queries: Vectors to make of one sequence.
    """

    def __init__(self, embed_dim: int, num_heads: int = 16, depth: int = 1, num_queries: int = 1) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"an attentive pooler needs a depth of at least 1, got {depth}")
        self.query_tokens = nn.Parameter(torch.empty(1, num_queries, embed_dim))
        self.cross_attention_block = CrossAttentionBlock(embed_dim, num_heads)
        if depth > 1:
            self.blocks = nn.ModuleList(Block(embed_dim, num_heads, norm_eps=PROBE_EPS) for _ in range(depth - 1))
        init_weights(self, depth_rescale=True)
        nn.init.normal_(self.query_tokens, std=0.02)
        with torch.no_grad():
            self.cross_attention_block.mlp.fc2.weight.div_((2.0 * depth) ** 0.5)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch queries dim"]:
        """(B, N, D) -> (B, num_queries, D)."""
        for block in getattr(self, "blocks", ()):
            tokens = block(tokens)
        return self.cross_attention_block(self.query_tokens.expand(tokens.shape[0], -1, -1), tokens)


class AttentiveClassifier(nn.Module):
    """Attentive pooling with one query, and a linear layer.

    Args:
        embed_dim: Channels of the tokens, D.
        num_classes: Classes.
        num_heads: Attention heads.
        depth: Layers of the pooler.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_heads: int = 16, depth: int = 1) -> None:
        super().__init__()
        at_least(1, num_classes=num_classes)
        self.pooler = AttentivePooler(embed_dim, num_heads, depth)
        self.linear = nn.Linear(embed_dim, num_classes)
        init_weights(self.linear)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.linear(self.pooler(tokens)[:, 0])

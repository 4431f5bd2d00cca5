"""The pre-norm Transformer block of ViT (Dosovitskiy et al. 2021), with the field's parameter names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPS = 1e-6
"""LayerNorm epsilon of every released JEPA; PyTorch's own default is 1e-5."""


class Attention(nn.Module):
    """Multi-head self-attention through ``scaled_dot_product_attention``, one fused ``qkv`` projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Every token attends to every token given; masking in a JEPA means not giving a token."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, head_dim)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class MLP(nn.Module):
    """Two layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply to each token on its own."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """``x += attention(norm1(x)); x += mlp(norm2(x))``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """One residual layer."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@torch.no_grad()
def init_weights(module: nn.Module, std: float | None = 0.02, depth_rescale: bool = False) -> None:
    """Initialise the Linear layers and norms below ``module``: weights N(0, std^2), biases 0.

    The official code draws from a normal cut at +-2 *absolute*, which never cuts (std 0.02) but can return
    exactly -2; a plain normal is the same distribution without that fault.

    Args:
        module: Where to look; submodules called ``blocks`` or ``predictor_blocks`` are counted for the rescale.
        std: Standard deviation, or None for Xavier's sqrt(2 / (fan_in + fan_out)) of each layer.
        depth_rescale: Divide the two output projections of block i (from 1) by sqrt(2 i). The official I-JEPA
            does so and then undoes it before training, V-JEPA 2 keeps it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            if std is None:
                nn.init.xavier_normal_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()
    if depth_rescale:
        for stack in [s for s in module.modules() if isinstance(s, nn.ModuleList)]:
            for number, block in enumerate((b for b in stack if isinstance(b, Block)), start=1):
                block.attn.proj.weight.div_((2.0 * number) ** 0.5)
                block.mlp.fc2.weight.div_((2.0 * number) ** 0.5)

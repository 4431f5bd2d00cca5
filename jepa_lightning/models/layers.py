"""The pre-norm Transformer block of ViT (Dosovitskiy et al. 2021), with the field's parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa_lightning.models.positions import Rotation, rotate

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

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Every token attends to every token given; masking in a JEPA means not giving a token."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, head_dim)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
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


class SwiGLU(nn.Module):
    """``fc3(silu(fc1 x) * fc2 x)`` (Shazeer 2020); two thirds of the hidden width, rounded up to a multiple of 8."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = -(-(2 * hidden // 3) // 8) * 8
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(dim, hidden)
        self.fc3 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply to each token on its own."""
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class DropPath(nn.Module):
    """While training, leave out the whole residual branch of some samples (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path is the share of samples that lose a branch: use 0 to below 1, not {rate}")
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Zero or x / (1 - rate), drawn for each sample."""
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * (kept / (1.0 - self.rate)).to(x.dtype)


@dataclass(frozen=True)
class BlockOptions:
    """What blocks may have beside their size.

    Args:
        swiglu: SwiGLU in place of the GELU MLP.
        drop_path: Rate of the last block; it grows linearly from 0 in the first.
        checkpoint_activations: Compute each block again in the backward pass instead of keeping its activations: a
            third more time, memory of one block.
    """

    swiglu: bool = False
    drop_path: float = 0.0
    checkpoint_activations: bool = False


class Block(nn.Module):
    """``x += attention(norm1(x)); x += mlp(norm2(x))``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        swiglu: bool = False,
        drop_path: float = 0.0,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = (SwiGLU if swiglu else MLP)(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """One residual layer."""
        x = x + self.drop_path(self.attn(self.norm1(x), rotation))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def stack(depth: int, dim: int, num_heads: int, mlp_ratio: float, options: BlockOptions) -> nn.ModuleList:
    """``depth`` blocks."""
    rates = [options.drop_path * i / max(1, depth - 1) for i in range(depth)]
    return nn.ModuleList(Block(dim, num_heads, mlp_ratio, options.swiglu, rate) for rate in rates)


def run(
    blocks: nn.ModuleList,
    x: Float[Tensor, "batch tokens dim"],
    rotation: Rotation | None,
    options: BlockOptions,
    keep: Sequence[int] = (),
) -> tuple[Float[Tensor, "batch tokens dim"], list[Tensor]]:
    """The output of the last block, and those of the blocks whose numbers (from 0) are in ``keep``, in that order.

    Raises:
        ValueError: If there is no block of such a number.
    """
    if any(not 0 <= number < len(blocks) for number in keep):
        raise ValueError(f"out_layers {list(keep)} of {len(blocks)} blocks: use numbers from 0 to {len(blocks) - 1}")
    again = options.checkpoint_activations and blocks.training and torch.is_grad_enabled()
    kept: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):
        x = checkpoint(block, x, rotation, use_reentrant=False) if again else block(x, rotation)
        if number in keep:
            kept[number] = x
    return x, [kept[number] for number in keep]


@torch.no_grad()
def init_weights(module: nn.Module, std: float | None = 0.02, depth_rescale: bool = False) -> None:
    """Initialise the Linear layers and norms below ``module``: weights N(0, std^2), biases 0.

    The official code draws from a normal cut at +-2 *absolute*, which never cuts (std 0.02) but can return
    exactly -2; a plain normal is the same distribution without that fault.

    Args:
        module: Where to look; submodules called ``blocks`` or ``predictor_blocks`` are counted for the rescale.
        std: Standard deviation, or None for Xavier's sqrt(2 / (fan_in + fan_out)) of each layer.
        depth_rescale: Divide the two output projections of block i (from 1) by sqrt(2 i). The official I-JEPA and
            V-JEPA do so and then undo it before training, V-JEPA 2 keeps it (and with SwiGLU divides the gate).
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
        for blocks in [s for s in module.modules() if isinstance(s, nn.ModuleList)]:
            for number, block in enumerate((b for b in blocks if isinstance(b, Block)), start=1):
                block.attn.proj.weight.div_((2.0 * number) ** 0.5)
                last = block.mlp.fc3 if isinstance(block.mlp, SwiGLU) else block.mlp.fc2
                last.weight.div_((2.0 * number) ** 0.5)

"""The pre-norm Transformer block of ViT (Dosovitskiy et al. 2021), with the field's parameter names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa_lightning.models.packing import Packing
from jepa_lightning.models.positions import Rotation, rotate
from jepa_lightning.ranges import at_least

NORM_EPS = 1e-6
"""LayerNorm epsilon of every released JEPA; PyTorch's own default is 1e-5."""


class Past:
    """Keys and values of the tokens that an attention has seen, (B, heads, N, head_dim); empty at first."""

    def __init__(self) -> None:
        self.seen: tuple[Tensor, Tensor] | None = None

    def and_then(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those seen before, then these, which are kept with them."""
        if self.seen is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.seen, (k, v), strict=True))
        self.seen = (k, v)
        return k, v

    def copy(self) -> Past:
        """Another one with the same tokens."""
        other = Past()
        other.seen = self.seen
        return other


class SharedContext(NamedTuple):
    """Sequences of a predictor in which several blocks of targets share one context: [context, block 1, ..., block M].

    The context attends to itself, the targets of a block to the context and to their own block. So the context passes
    through every layer once, not once for each block.

    Attributes:
        context: Number of context tokens, Nc.
        blocks: Number of blocks, M.
    """

    context: int
    blocks: int

    def mixed(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch heads tokens head_dim"],
        v: Float[Tensor, "batch heads tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The values that each token gets."""
        first = (slice(None), slice(None), slice(self.context))
        context = F.scaled_dot_product_attention(q[first], k[first], v[first])
        queries = self._by_block(q[:, :, self.context :])
        keys, values = (
            torch.cat([part[:, None, :, : self.context].expand(-1, self.blocks, -1, -1, -1).flatten(0, 1),
                       self._by_block(part[:, :, self.context :])], dim=2)
            for part in (k, v)
        )  # fmt: skip
        targets = F.scaled_dot_product_attention(queries, keys, values)  # (B * M, heads, Nt, head_dim)
        return torch.cat([context, targets.unflatten(0, (-1, self.blocks)).transpose(1, 2).flatten(2, 3)], dim=2)

    def _by_block(
        self, targets: Float[Tensor, "batch heads targets head_dim"]
    ) -> Float[Tensor, "blocks heads nt head_dim"]:
        return targets.unflatten(2, (self.blocks, -1)).transpose(1, 2).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head self-attention through ``scaled_dot_product_attention``, one fused ``qkv`` projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        at_least(1, num_heads=num_heads)
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        rotation: Rotation | None = None,
        packing: Packing | None = None,
        allowed: Bool[Tensor, "#batch 1 tokens keys"] | None = None,
        past: Past | None = None,
        shared: SharedContext | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Every token attends to every token of its sequence; masking in a JEPA means not giving a token.

        Args:
            x: A batch of sequences of one length, or a packed list of tokens, (1, total, D).
            rotation: How queries and keys are rotated; with packing that of the padded table, or of the sorted list.
            packing: Which sequences the list holds.
            allowed: Which keys each token attends to, for a batch of one length; None for all.
            past: Tokens seen before, whose keys come first; those of ``x`` are added to them.
            shared: Which part of a sequence is the context of several blocks; None if all tokens see each other.
        """
        qkv, split = self.qkv(x), (3, self.num_heads, -1)
        if packing is not None and packing.runs:
            turns: list[Rotation | None] = [None] * len(packing.runs)
            if rotation is not None:
                cos, sin = (packing.tables(part[:, 0]) for part in rotation)
                turns = [Rotation(c.unsqueeze(1), s.unsqueeze(1)) for c, s in zip(cos, sin, strict=True)]
            tables = zip(packing.tables(qkv.unflatten(2, split)), turns, strict=True)
            mixed = torch.cat([self._mixed(table, turn).reshape(-1, x.shape[2]) for table, turn in tables])
            return self.proj(mixed.unsqueeze(0))
        if packing is not None:
            mixed = self._mixed(packing.pad(qkv).unflatten(2, split), rotation, packing.keep)
            return self.proj(packing.pack(mixed.flatten(2)))
        return self.proj(self._mixed(qkv.unflatten(2, split), rotation, allowed, past, shared).flatten(2))

    def _mixed(
        self,
        qkv: Float[Tensor, "batch tokens 3 heads head_dim"],
        rotation: Rotation | None,
        keep: Bool[Tensor, "#batch 1 #queries keys"] | None = None,
        past: Past | None = None,
        shared: SharedContext | None = None,
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        """The values that each token of a sequence gets."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, head_dim)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if past is not None:
            k, v = past.and_then(k, v)
        if shared is not None:
            return shared.mixed(q, k, v).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).transpose(1, 2)


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
            raise ValueError(f"drop_path is the fraction of samples that lose a branch: use 0 to below 1, not {rate}")
        self.rate = rate

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], packing: Packing | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Zero or x / (1 - rate), drawn for each sequence."""
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(x.shape[0] if packing is None else packing.rows, 1, 1, device=x.device) >= self.rate
        factor = (kept / (1.0 - self.rate)).to(x.dtype)
        return x * (factor if packing is None else packing.spread(factor))


class Trunk(ABC):
    """What stands between the first tokens of a network and its final norm: subclass it to bring your own.

    One object serves several networks, so it holds options and no parameters.
    """

    @abstractmethod
    def build(self, depth: int, dim: int, num_heads: int, mlp_ratio: float) -> nn.ModuleList:
        """The parts with parameters, as blocks that FSDP can shard one by one."""

    @abstractmethod
    def run(
        self,
        blocks: nn.ModuleList,
        x: Float[Tensor, "batch tokens dim"],
        rotation: Rotation | None = None,
        packing: Packing | None = None,
        layers: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """The tokens after the layers with these numbers, in that order; after the last one alone if None.

        Raises:
            ValueError: If there is no layer of such a number, see ``layer_numbers``.
        """

    def diagnostics(self, blocks: nn.ModuleList) -> dict[str, Tensor]:
        """Scalars to log about the last pass in training; nothing, unless a subclass has something to say."""
        return {}


@dataclass(frozen=True)
class BlockOptions(Trunk):
    """The Transformer: blocks, and what they may have beside their size.

    Args:
        swiglu: SwiGLU in place of the GELU MLP.
        drop_path: Rate of the last block; it grows linearly from 0 in the first.
        checkpoint_activations: Compute each block again in the backward pass instead of keeping its activations: a
            third more time, memory of one block.
    """

    swiglu: bool = False
    drop_path: float = 0.0
    checkpoint_activations: bool = False

    def build(self, depth: int, dim: int, num_heads: int, mlp_ratio: float) -> nn.ModuleList:
        """``depth`` blocks."""
        rates = [self.drop_path * i / max(1, depth - 1) for i in range(depth)]
        return nn.ModuleList(Block(dim, num_heads, mlp_ratio, self.swiglu, rate) for rate in rates)

    def run(
        self,
        blocks: nn.ModuleList,
        x: Float[Tensor, "batch tokens dim"],
        rotation: Rotation | None = None,
        packing: Packing | None = None,
        layers: Sequence[int] | None = None,
        allowed: Bool[Tensor, "#batch 1 tokens keys"] | None = None,
        shared: SharedContext | None = None,
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """One block after the other; sequences of several lengths sorted by length in between, where that is known.

        Args:
            blocks: What ``build`` made.
            x: A batch of sequences of one length, or a packed list of tokens, (1, total, D).
            rotation: How queries and keys are rotated.
            packing: Which sequences the list holds.
            layers: Which layers' tokens are given; None for the last one's.
            allowed: Which keys each token attends to, for a batch of one length; None for all.
            shared: Which part of a sequence is the context of several blocks of targets.
        """
        if packing is not None and not packing.runs and (found := packing.by_length()) is not None:
            packing, order = found
            if rotation is not None:
                rotation = Rotation(*(part.transpose(0, 1).flatten(1, 2)[:, packing.places][None] for part in rotation))
            outputs = self.run(blocks, x[0].index_select(0, order).unsqueeze(0), rotation, packing, layers)
            return [tokens[0].index_select(0, order.argsort()).unsqueeze(0) for tokens in outputs]
        again = self.checkpoint_activations and blocks.training and torch.is_grad_enabled()
        numbers = layer_numbers(layers, len(blocks))
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(blocks):
            arguments = (x, rotation, packing, allowed, None, shared)
            x = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
            if number in numbers:
                kept[number] = x
        return [kept.get(number, x) for number in numbers]  # without blocks, x as it came


def layer_numbers(layers: Sequence[int] | None, count: int) -> list[int]:
    """Numbers of layers from 0, of numbers that may count from the end; the last one's if None.

    Raises:
        ValueError: If there is no layer of such a number.
    """
    if layers is None:
        return [count - 1]
    if any(not -count <= number < count for number in layers):
        raise ValueError(f"layers {list(layers)} of {count} blocks: use numbers from 0 to {count - 1}, -1 for the last")
    return [number % count for number in layers]


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
        self,
        x: Float[Tensor, "batch tokens dim"],
        rotation: Rotation | None = None,
        packing: Packing | None = None,
        allowed: Bool[Tensor, "#batch 1 tokens keys"] | None = None,
        past: Past | None = None,
        shared: SharedContext | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """One residual layer; ``allowed``, ``past`` and ``shared`` as of Attention."""
        x = x + self.drop_path(self.attn(self.norm1(x), rotation, packing, allowed, past, shared), packing)
        return x + self.drop_path(self.mlp(self.norm2(x)), packing)


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

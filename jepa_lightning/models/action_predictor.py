"""The action-conditioned predictor of V-JEPA 2-AC: features of the next frame from frames and actions so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa_lightning.models.layers import NORM_EPS, Attention, Block, init_weights
from jepa_lightning.models.positions import RoPE, Rotation, rotate
from jepa_lightning.models.vision_transformer import Encoder

Cached = tuple[Tensor, Tensor]
"""Rotated keys and values of the steps so far in one block, (B, heads, tokens, head_dim) each."""


class Memory(NamedTuple):
    """What the predictor keeps of the steps that it has seen, so that a roll-out computes each step once.

    Attributes:
        steps: How many they are.
        blocks: Keys and values of each block.
    """

    steps: int
    blocks: tuple[Cached, ...]


class BlockCausalAttention(Attention):
    """Attention in which all tokens of a step see each other and all earlier steps.

    The steps attend one after the other, each to a slice of the keys: the same as one dense mask over all tokens, which
    for the 512 frames of the official training has 4.4 billion entries, without any mask and with half of the work.
    """

    def attend(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, steps: int, past: Cached | None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Cached]:
        """Mix the tokens of ``steps`` steps, which follow those of ``past``; also give keys and values of all."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        size = x.shape[1] // steps
        before = k.shape[2] - x.shape[1]
        ends = [before + size * (step + 1) for step in range(steps)]
        mixed = [
            F.scaled_dot_product_attention(queries, k[:, :, :end], v[:, :, :end])
            for queries, end in zip(q.split(size, dim=2), ends, strict=True)
        ]
        return self.proj(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2)), (k, v)


class BlockCausalBlock(Block):
    """A Transformer block with block-causal attention."""

    attn: BlockCausalAttention

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.attn = BlockCausalAttention(dim, num_heads)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, steps: int, past: Cached | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Cached]:
        """One residual layer; also the keys and values of its attention."""
        mixed, cached = self.attn.attend(self.norm1(x), rotation, steps, past)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), cached


class ActionPredictor(nn.Module):
    """The predictor of V-JEPA 2-AC (Assran et al. 2025, section 3.1; parameter names as in Meta's files).

    A step is [action, state, extrinsics, patches of the frame], without state or extrinsics where there are none.
    Attention is block-causal. Patches have rotary positions in time, height and width, the tokens before them in time
    alone. What a step says at its patches is a prediction of the next frame.

    Args:
        encoder: The encoder whose tokens it reads and predicts; only its sizes and its kind of positions are taken.
        embed_dim: Width of the predictor.
        depth: Number of Transformer blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        init_std: Standard deviation of the initial Linear weights, whose output projections of block i are then divided
            by sqrt(2 i); null for Xavier (better for small models).
        action_dim: Numbers in an action.
        state_dim: Numbers in a state, for example the pose of a robot; null for none.
        extrinsics_dim: Numbers that say where the camera is; null for none.
        use_extrinsics: Read the extrinsics. Released files have a layer for them and do not use it.
        checkpoint_activations: Compute each block again in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        encoder: Encoder,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        action_dim: int = 7,
        state_dim: int | None = 7,
        extrinsics_dim: int | None = 6,
        use_extrinsics: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if use_extrinsics and extrinsics_dim is None:
            raise ValueError("use_extrinsics: true needs extrinsics_dim, the numbers that say where the camera is")
        self.grid, self.num_heads, self.depth = encoder.grid[1:], num_heads, depth
        self.positions = encoder.positions if isinstance(encoder.positions, RoPE) else RoPE()
        self.use_extrinsics, self.checkpoint_activations = use_extrinsics, checkpoint_activations
        self.predictor_embed = nn.Linear(encoder.embed_dim, embed_dim)
        self.action_encoder = nn.Linear(action_dim, embed_dim)
        self.state_encoder = None if state_dim is None else nn.Linear(state_dim, embed_dim)
        self.extrinsics_encoder = None if extrinsics_dim is None else nn.Linear(extrinsics_dim, embed_dim)
        blocks = [BlockCausalBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth)]
        self.predictor_blocks = nn.ModuleList(blocks)
        self.predictor_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(embed_dim, encoder.embed_dim)
        init_weights(self, init_std, depth_rescale=init_std is not None)
        if self.extrinsics_encoder is not None:  # unused, it would have no gradient, for which DDP waits
            self.extrinsics_encoder.requires_grad_(use_extrinsics)

    def forward(
        self,
        features: Float[Tensor, "batch tokens dim"],
        actions: Float[Tensor, "batch steps action"],
        states: Float[Tensor, "batch steps state"] | None = None,
        extrinsics: Float[Tensor, "batch steps extrinsics"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Predict the features of the frame after each step.

        Args:
            features: Tokens of the frames of all steps, (B, T H W, D).
            actions: What is done after each frame, (B, T, A).
            states: State at each frame, (B, T, S).
            extrinsics: Where the camera is at each frame, (B, T, E); not read without ``use_extrinsics``.
            grid: Rows and columns of tokens of a frame, if it has another size than the encoder was built for.

        Raises:
            ValueError: If the shapes do not agree, or something is missing that the predictor was built for.
        """
        return self.advance(features, actions, states, extrinsics, None, grid)[0]

    def advance(
        self,
        features: Float[Tensor, "batch tokens dim"],
        actions: Float[Tensor, "batch steps action"],
        states: Float[Tensor, "batch steps state"] | None = None,
        extrinsics: Float[Tensor, "batch steps extrinsics"] | None = None,
        memory: Memory | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Memory]:
        """The same for steps that follow those in ``memory``; nothing of these is computed again."""
        grid, steps = grid or self.grid, actions.shape[1]
        before = self._conditioning(actions, states, extrinsics)  # (B, T, c, Dp)
        if features.shape[1] != steps * grid[0] * grid[1]:
            raise ValueError(
                f"features have {features.shape[1]} tokens, {steps} actions and frames of {grid[0]} x {grid[1]} tokens "
                f"need {steps * grid[0] * grid[1]}: give the features of one frame for each action, and its grid"
            )
        patches = self.predictor_embed(features).unflatten(1, (steps, -1))
        count = before.shape[2]
        x = torch.cat([before, patches], dim=2).flatten(1, 2)
        first = 0 if memory is None else memory.steps
        rotation = self._rotation(first, steps, count, grid, x)
        again = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        kept = []
        for number, block in enumerate(self.predictor_blocks):
            arguments = (x, rotation, steps, None if memory is None else memory.blocks[number])
            x, cached = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
            kept.append(cached)
        x = x.unflatten(1, (steps, -1))[:, :, count:].flatten(1, 2)
        return self.predictor_proj(self.predictor_norm(x)), Memory(first + steps, tuple(kept))

    def _conditioning(
        self, actions: Tensor, states: Tensor | None, extrinsics: Tensor | None
    ) -> Float[Tensor, "batch steps conditions dim"]:
        """The tokens before the patches of each step."""
        given = {"action": (self.action_encoder, actions)}
        if self.state_encoder is not None:
            given["state"] = (self.state_encoder, _needed("states", states, "state_dim: null"))
        if self.use_extrinsics and self.extrinsics_encoder is not None:
            given["extrinsics"] = (self.extrinsics_encoder, _needed("extrinsics", extrinsics, "use_extrinsics: false"))
        for name, (layer, values) in given.items():
            if values.shape != (*actions.shape[:2], layer.in_features):
                raise ValueError(
                    f"{name} is {list(values.shape)}, the predictor reads {layer.in_features} numbers in each of "
                    f"{actions.shape[1]} steps: set {name}_dim of the predictor, or cut what is given"
                )
        return torch.stack([layer(values) for layer, values in given.values()], dim=2)

    def _rotation(self, first: int, steps: int, conditions: int, grid: tuple[int, int], x: Tensor) -> Rotation:
        """Patches at (time, row, column) in units of the encoder's grid; the tokens before them at (time, 0, 0)."""
        height, width = grid
        index = torch.arange(height * width, device=x.device).expand(steps, -1)
        row = F.pad((index // width) * (self.grid[0] / height), (conditions, 0))
        column = F.pad((index % width) * (self.grid[1] / width), (conditions, 0))
        time = torch.arange(first, first + steps, device=x.device).unsqueeze(1).expand_as(row)
        places = (time.reshape(1, -1), row.reshape(1, -1), column.reshape(1, -1))
        return self.positions.at(places, x.shape[-1] // self.num_heads)


def _needed(name: str, values: Tensor | None, without: str) -> Tensor:
    if values is None:
        raise ValueError(f"the predictor reads {name}, and none are given: build it with {without}")
    return values

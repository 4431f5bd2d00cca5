"""The encoder of LeVJEPA: attention is causal from frame to frame, and a class token looks at the whole clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.padded import Padded
from jepa_lightning.masking.tokens import rows_of
from jepa_lightning.models.layers import BlockOptions, Past
from jepa_lightning.models.positions import RoPE, Rotation
from jepa_lightning.models.vision_transformer import VisionTransformer

CLASS_STD = 1e-6
"""Standard deviation of the initial class token."""


class CausalVisionTransformer(VisionTransformer):
    """ViT for clips whose tokens attend to their own frame, both ways, and to earlier ones (LeVJEPA, 2608.27395).

    ``encoder(clip)`` gives the tokens of the patches, (B, N, D); ``encoder.summary(clip)`` the class token, which
    attends to all of them while none attends to it. As no token depends on a later frame, ``encoder.stream()`` encodes
    a video frame by frame. Arguments as of VisionTransformer; positions have to be RoPE.

    Args:
        img_size: Side of the square input in pixels, or (height, width). Other sizes work.
        patch_size: Side of a patch in pixels.
        in_chans: Input channels.
        embed_dim: Channels of each token.
        depth: Number of Transformer blocks.
        num_heads: Attention heads of each block.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        init_std: Standard deviation of the initial Linear weights; null for Xavier (better for small models).
        patch_init_std: The same for the patch projection; null for 0.02.
        depth_rescale: Divide the output projections of block i by sqrt(2 i) at initialisation.
        num_frames: Frames of a clip that it is built for, at least 2; other lengths work.
        tubelet_size: Frames that one token covers; all of them are one step of time.
        positions: RoPE; null for it.
        blocks: SwiGLU, drop path, activation checkpointing.

    Raises:
        ValueError: If it is built for images.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        patch_init_std: float | None = None,
        depth_rescale: bool = False,
        num_frames: int = 16,
        tubelet_size: int = 1,
        positions: RoPE | None = None,
        blocks: BlockOptions | None = None,
    ) -> None:
        positions, blocks = positions or RoPE(), blocks or BlockOptions()
        if num_frames < 2:
            raise ValueError(f"a causal encoder takes clips, got num_frames {num_frames}: use VisionTransformer")
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, init_std, patch_init_std,
            depth_rescale, num_frames, tubelet_size, positions, blocks,
        )  # fmt: skip
        self.options: BlockOptions = blocks
        self.cls_token = nn.Parameter(CLASS_STD * torch.randn(1, 1, embed_dim))

    def forward(
        self,
        inputs: Float[Tensor, "batch channels *size"],
        context: Int[Tensor, "batch k"] | Padded | None = None,
        layers: int | Sequence[int] | None = None,
        summary: bool = False,
    ) -> Any:
        """Tokens of the whole clip, (B, N, D), or only those of the context, (B, Nc, D).

        Args:
            inputs: Clips (B, C, T, H, W); an image (B, C, H, W) is one step of time.
            context: The tokens to compute, (B, Nc), all of one length; attention sees no others.
            layers: The block whose tokens are wanted in place of the last one's, from 0; -1 is the last. Of several
                numbers the result is a list. All tokens pass through the final norm.
            summary: Give the class token, (B, D), in place of the others.

        Raises:
            ValueError: If contexts have several lengths, or there is no such block.
        """
        if isinstance(context, Padded):
            raise ValueError("a causal encoder takes contexts of one length: use masks that are cut to the shortest")
        grid = self.grid_of(inputs)
        x, index = self._embedded(inputs, context, grid)
        time = index // (grid[1] * grid[2])
        last = torch.full_like(time[:, :1], int(grid[0]))  # of the class token: after everything
        time = torch.cat([time, last], dim=1)
        allowed = (time[:, :, None] >= time[:, None, :]).unsqueeze(1)  # (B, 1, queries, keys)
        x = torch.cat([x, self.cls_token.expand(len(x), -1, -1)], dim=1)
        rotation = with_class(self.positions.rotation(index, grid, self.embed_dim // self.num_heads))
        numbers = [layers] if isinstance(layers, int) else layers
        outputs = self.options.run(self.blocks, x, rotation, layers=numbers, allowed=allowed)
        if summary:
            return self.norm(outputs[-1][:, -1])
        outputs = self.normed([tokens[:, :-1] for tokens in outputs], numbers)
        return outputs[0] if layers is None or isinstance(layers, int) else outputs

    def summary(
        self, inputs: Float[Tensor, "batch channels *size"], context: Int[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """The class token."""
        return self(inputs, context, summary=True)

    def stream(self) -> Stream:
        """What encodes a video step by step, without encoding the past again."""
        return Stream(self)

    def _embedded(
        self, inputs: Tensor, context: Tensor | None, grid: tuple[int, int, int]
    ) -> tuple[Tensor, Int[Tensor, "batch tokens"]]:
        """First tokens and their numbers."""
        count = grid[0] * grid[1] * grid[2]
        if context is None:
            return self.embed(inputs), torch.arange(count, device=inputs.device).unsqueeze(0)
        rows = rows_of(context, count)
        return self.embed(inputs, rows).reshape(*context.shape, self.embed_dim), context


class Stream:
    """Encodes the frames of a video as they come, each once; keys and values of the past are kept.

    Args:
        encoder: The encoder.
    """

    def __init__(self, encoder: CausalVisionTransformer) -> None:
        self.encoder = encoder
        self.past = [Past() for _ in encoder.blocks]
        self.steps = 0
        """Steps of time that were seen."""

    @torch.no_grad()
    def __call__(self, frames: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the next frame (B, C, H, W), or of several (B, C, t, H, W): as if all were given at once."""
        encoder = self.encoder
        grid = encoder.grid_of(frames)
        x, index = encoder.embed(frames), torch.arange(grid[0] * grid[1] * grid[2], device=frames.device)
        rotation = encoder.positions.rotation(
            (index + self.steps * grid[1] * grid[2]).unsqueeze(0), grid, encoder.embed_dim // encoder.num_heads
        )
        time = index // (grid[1] * grid[2])
        seen = self.steps * grid[1] * grid[2]
        allowed = F.pad(time[:, None] >= time, (seen, 0), value=True)[None, None]  # all of the past
        for block, past in zip(encoder.blocks, self.past, strict=True):
            x = block(x, rotation, None, allowed, past)
        self.steps += grid[0]
        return encoder.normed([x], None)[0]

    @torch.no_grad()
    def summary(self) -> Float[Tensor, "batch dim"]:
        """The class token of all that was seen.

        Raises:
            ValueError: If nothing was seen.
        """
        if self.past[0].seen is None:
            raise ValueError("the stream has seen no frame: call it with one first")
        x = self.encoder.cls_token.expand(len(self.past[0].seen[0]), -1, -1)
        for block, past in zip(self.encoder.blocks, self.past, strict=True):
            x = block(x, None, None, None, past.copy())  # which the class token does not join
        return self.encoder.norm(x[:, 0])


def with_class(rotation: Rotation | None) -> Rotation:
    """The rotation of tokens and of a class token after them, which is not rotated."""
    assert rotation is not None, "RoPE always rotates"
    return Rotation(F.pad(rotation.cos, (0, 0, 0, 1), value=1.0), F.pad(rotation.sin, (0, 0, 0, 1)))

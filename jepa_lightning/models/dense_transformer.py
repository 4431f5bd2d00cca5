"""The encoder of V-JEPA 2.1: images and clips have patch embeddings of their own, and several blocks are read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.models.layers import NORM_EPS, BlockOptions, Trunk
from jepa_lightning.models.positions import Grid, Positions, RoPE
from jepa_lightning.models.vision_transformer import TubeletEmbed, VisionTransformer, token_grid

MODALITY_STD = 1e-6
"""Standard deviation of the initial modality embeddings."""


def is_image(inputs: Tensor) -> bool:
    """Whether inputs are images, (B, C, H, W) or (B, C, 1, H, W), and not clips of several frames."""
    return inputs.ndim == 4 or inputs.shape[2] == 1


def published_levels(depth: int) -> tuple[int, ...]:
    """The four blocks that V-JEPA 2.1 reads: the ends of the quarters, but for 48 blocks 11, 23, 37 and 47.

    Raises:
        ValueError: If there are fewer than four blocks.
    """
    if depth < 4:
        raise ValueError(f"an encoder of {depth} blocks has no four levels: set depth to at least 4, or give levels")
    return (11, 23, 37, 47) if depth == 48 else tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))


class DenseVisionTransformer(VisionTransformer):
    """ViT of V-JEPA 2.1 (arXiv 2603.14482), for images and clips alike; parameter names as in Meta's files.

    ``encoder(inputs)`` gives the tokens of the last level, (B, N, D); ``encoder(inputs, layers=encoder.levels)`` a list
    with those of every level, each through a norm of its own, which the method trains side by side. An image
    (B, C, H, W) or (B, C, 1, H, W) has one token for each patch, a clip one for each tubelet. What kind of input it is
    stands in an embedding that is added to all of its tokens.

    Args:
        img_size: Side of the square input in pixels, or (height, width). Other sizes work.
        patch_size: Side of a patch in pixels.
        in_chans: Input channels.
        embed_dim: Channels of each token.
        depth: Number of Transformer blocks.
        num_heads: Attention heads of each block.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        init_std: Standard deviation of the initial Linear weights; null for Xavier (better for small models).
        patch_init_std: The same for both patch projections; null for 0.02.
        depth_rescale: Divide the output projections of block i by sqrt(2 i) at initialisation, as the official code.
        num_frames: Frames of the clips that it is built for, at least 2; other lengths work.
        tubelet_size: Frames of a clip that one token covers.
        positions: null for RoPE, spread over a grid of 16 x 16 as in the official code.
        blocks: SwiGLU, drop path, activation checkpointing.
        levels: Numbers of the blocks that are read, from 0, ascending, the last block at the end; null for the four
            published ones.

    Raises:
        ValueError: If it is built for clips of one frame, or the levels are no ascending blocks up to the last.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        patch_init_std: float | None = None,
        depth_rescale: bool = True,
        num_frames: int = 16,
        tubelet_size: int = 2,
        positions: Positions | None = None,
        blocks: BlockOptions | Trunk | None = None,
        levels: Sequence[int] | None = None,
    ) -> None:
        if num_frames < 2:
            raise ValueError(f"num_frames is the length of the clips, at least 2, got {num_frames}; images always work")
        positions = positions or RoPE(stretch_to=16)
        super().__init__(
            img_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, init_std, patch_init_std,
            depth_rescale, num_frames, tubelet_size, positions, blocks,
        )  # fmt: skip
        self.levels = published_levels(depth) if levels is None else tuple(levels)
        if list(self.levels) != sorted(set(self.levels)) or self.levels[:1] < (0,) or self.levels[-1] != depth - 1:
            raise ValueError(
                f"levels {list(self.levels)} of {depth} blocks: use ascending numbers from 0 to {depth - 1}"
            )
        self.img_mod_embed = nn.Parameter(MODALITY_STD * torch.randn(1, 1, embed_dim))
        self.video_mod_embed = nn.Parameter(MODALITY_STD * torch.randn(1, 1, embed_dim))
        self.patch_embed_img = TubeletEmbed(1, patch_size, in_chans, embed_dim)
        nn.init.normal_(self.patch_embed_img.proj.weight, std=0.02 if patch_init_std is None else patch_init_std)
        nn.init.zeros_(self.patch_embed_img.proj.bias)  # type: ignore[arg-type]
        del self.norm  # every level has its own
        self.norms_block = nn.ModuleList(nn.LayerNorm(embed_dim, eps=NORM_EPS) for _ in self.levels)

    def grid_of(self, inputs: Tensor) -> Grid:
        """The token grid of images (B, C, H, W) or (B, C, 1, H, W), or of clips (B, C, T, H, W).

        Raises:
            ValueError: If patches or tubelets do not divide the input.
        """
        if not is_image(inputs):
            return super().grid_of(inputs)
        return token_grid(inputs.shape[-2], inputs.shape[-1], self.patch_size)

    def embed(
        self, inputs: Float[Tensor, "batch channels *size"], rows: Int[Tensor, " total"] | None = None
    ) -> Float[Tensor, "*tokens dim"]:
        """Tokens before positions, (B, N, D), or of these B N tokens only ``rows``, (total, D)."""
        if is_image(inputs):
            frames = inputs.unsqueeze(2) if inputs.ndim == 4 else inputs
            return self.patch_embed_img(frames, rows) + self.img_mod_embed[0]
        return self.patch_embed(inputs, rows) + self.video_mod_embed[0]

    def normed(self, outputs: Sequence[Tensor], layers: Sequence[int] | None) -> list[Tensor]:
        """Apply the norm of its level to each; None stands for the last block alone.

        A block between two levels has the norm of the next level, so that any block can be looked at and probed; the
        official code refuses it.
        """
        numbers = [number % self.depth for number in ([-1] if layers is None else layers)]
        norms = [self.norms_block[bisect_left(self.levels, number)] for number in numbers]
        return [norm(tokens) for norm, tokens in zip(norms, outputs, strict=True)]

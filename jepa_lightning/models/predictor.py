"""The narrow Transformer that predicts the target tokens from the context tokens (I-JEPA section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.models.layers import NORM_EPS, Block, init_weights
from jepa_lightning.models.positions import Grid, fit_positions, sincos_2d
from jepa_lightning.models.vision_transformer import Encoder


class Predictor(nn.Module):
    """Context tokens and positioned mask tokens in, predicted target tokens out.

    Each target block is a sequence of its own, [context, mask tokens of the block]: blocks never see each other.

    Args:
        encoder: The encoder whose tokens it reads and predicts; only its sizes are taken.
        embed_dim: Width of the predictor; narrower than the encoder, which makes it a bottleneck.
        depth: Number of Transformer blocks.
        num_heads: Attention heads; null for as many as the encoder has.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        init_std: Standard deviation of the initial Linear weights; null for Xavier.
        depth_rescale: Divide the output projections of block i by sqrt(2 i) at initialisation.
    """

    def __init__(
        self,
        encoder: Encoder,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        depth_rescale: bool = False,
    ) -> None:
        super().__init__()
        self.grid = encoder.grid
        self.predictor_embed = nn.Linear(encoder.embed_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.predictor_pos_embed: Tensor
        self.register_buffer("predictor_pos_embed", sincos_2d(*self.grid[1:], embed_dim))
        heads = encoder.num_heads if num_heads is None else num_heads
        self.predictor_blocks = nn.ModuleList(Block(embed_dim, heads, mlp_ratio) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(embed_dim, encoder.embed_dim)
        init_weights(self, init_std, depth_rescale)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        context_tokens: Float[Tensor, "batch nc dim"],
        context: Int[Tensor, "batch nc"],
        targets: Int[Tensor, "batch m nt"],
        mask_index: int = 0,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch m nt dim"]:
        """Predict the tokens at ``targets`` from those at ``context``.

        Args:
            context_tokens: Output of the context encoder.
            context: Where these tokens are in the grid.
            targets: Where to predict, M blocks for each sample.
            mask_index: Which family of masks this is; I-JEPA has one mask token for all of them.
            grid: The grid that the indices refer to, if the input had another size than the encoder was built for.
        """
        positions = fit_positions(self.predictor_pos_embed, self.grid, grid or self.grid)[0]  # (N, Dp)
        batch, blocks, count = targets.shape
        shown = self.predictor_embed(context_tokens) + F.embedding(context, positions)  # (B, Nc, Dp)
        asked = self.mask_token + F.embedding(targets, positions)  # (B, M, Nt, Dp)
        shown = shown.unsqueeze(1).expand(-1, blocks, -1, -1)
        x = torch.cat([shown, asked], dim=2).flatten(0, 1)  # (B * M, Nc + Nt, Dp)
        for block in self.predictor_blocks:
            x = block(x)
        x = self.predictor_proj(self.predictor_norm(x[:, -count:]))
        return x.unflatten(0, (batch, blocks))

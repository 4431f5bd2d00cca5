"""Predictors that are told how the view moved: an MLP on whole images, a Transformer on their tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning.models.affine import CODE_DIM
from jepa_lightning.models.layers import NORM_EPS, BlockOptions, init_weights
from jepa_lightning.models.positions import Grid, SinCos2D
from jepa_lightning.models.vision_transformer import Encoder


class AffinePredictor(nn.Module, ABC):
    """Features of one view and the code of a movement in, features of the other view out."""

    @abstractmethod
    def select(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch k dim"]:
        """What of the tokens of a view it reads and predicts."""

    @abstractmethod
    def forward(
        self, features: Float[Tensor, "batch k dim"], code: Float[Tensor, "batch code"], grid: Grid
    ) -> Float[Tensor, "batch k dim"]:
        """Predict the features after a movement.

        Args:
            features: What ``select`` keeps of a view, or an earlier prediction.
            code: The code of the movement, see ``affine_code``.
            grid: Tokens of the view along time, height and width.
        """


class AffineMLP(AffinePredictor):
    """Linear layers with GELU between them, on the mean of the tokens: ``g(c + e(code))``, e a Linear layer of its own.

    Args:
        encoder: The encoder whose features it reads and predicts; only its width is taken.
        depth: Number of Linear layers, each with weights of its own.
        hidden_dim: Width between them; null for that of the encoder.
    """

    def __init__(self, encoder: Encoder, depth: int = 3, hidden_dim: int | None = None) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is the number of Linear layers: use at least 1, not {depth}")
        ends, hidden = encoder.embed_dim, hidden_dim or encoder.embed_dim
        widths = [ends, *[hidden] * (depth - 1), ends]
        self.code_embed = nn.Linear(CODE_DIM, ends)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        init_weights(self, std=None)

    def select(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 1 dim"]:
        """Their mean."""
        return tokens.mean(dim=1, keepdim=True)

    def forward(
        self, features: Float[Tensor, "batch 1 dim"], code: Float[Tensor, "batch code"], grid: Grid
    ) -> Float[Tensor, "batch 1 dim"]:
        """Predict the mean of the tokens after a movement."""
        x = features + self.code_embed(F.gelu(code)).unsqueeze(1)
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else F.gelu(x))
        return x


class AffineTransformer(AffinePredictor):
    """Transformer blocks on all tokens, each with its position and the embedded code added.

    Args:
        encoder: The encoder whose tokens it reads and predicts; only its sizes are taken.
        embed_dim: Width of the blocks, divisible by 4 and by the heads; null for that of the encoder.
        depth: Number of blocks.
        num_heads: Attention heads; null for as many as the encoder has.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        init_std: Standard deviation of the initial Linear weights; null for Xavier.
        blocks: SwiGLU, drop path, activation checkpointing.
    """

    def __init__(
        self,
        encoder: Encoder,
        embed_dim: int | None = None,
        depth: int = 3,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        blocks: BlockOptions | None = None,
    ) -> None:
        super().__init__()
        width, heads = embed_dim or encoder.embed_dim, num_heads or encoder.num_heads
        self.grid, self.positions, self.options = encoder.grid, SinCos2D(), blocks or BlockOptions()
        self.predictor_embed = nn.Linear(encoder.embed_dim, width)
        self.code_embed = nn.Linear(CODE_DIM, width)
        self.predictor_pos_embed: Tensor
        self.register_buffer("predictor_pos_embed", self.positions.table(self.grid, width))
        self.predictor_blocks = self.options.build(depth, width, heads, mlp_ratio)
        self.predictor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(width, encoder.embed_dim)
        init_weights(self, init_std)

    def select(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """All of them."""
        return tokens

    def forward(
        self, features: Float[Tensor, "batch tokens dim"], code: Float[Tensor, "batch code"], grid: Grid
    ) -> Float[Tensor, "batch tokens dim"]:
        """Predict the tokens after a movement."""
        x = self.predictor_embed(features) + self.code_embed(F.gelu(code)).unsqueeze(1)
        x = x + self.positions.fit(self.predictor_pos_embed, self.grid, grid)
        x, _ = self.options.run(self.predictor_blocks, x)
        return self.predictor_proj(self.predictor_norm(x))

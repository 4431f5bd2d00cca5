"""The predictor of V-JEPA 2.1: from all levels of the encoder to all levels, at the targets and at the context."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.padded import Padded
from jepa_lightning.models.dense_transformer import MODALITY_STD, DenseVisionTransformer
from jepa_lightning.models.layers import BlockOptions, Trunk, init_weights
from jepa_lightning.models.positions import Grid
from jepa_lightning.models.predictor import Predictor, alike


class DensePredictor(Predictor):
    """Predictor of V-JEPA 2.1 (arXiv 2603.14482); parameter names as in Meta's files.

    Args:
        encoder: The encoder whose tokens it reads and predicts; only its sizes and its kind of positions are taken.
        embed_dim: Width of the predictor.
        depth: Number of Transformer blocks.
        num_heads: Attention heads; null for as many as the encoder has.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        init_std: Standard deviation of the initial Linear weights; null for Xavier.
        depth_rescale: Divide the output projections of block i by sqrt(2 i) at initialisation.
        num_mask_tokens: Learned mask tokens; the training uses the first one alone.
        mask_token_std: Standard deviation of the initial mask tokens.
        blocks: SwiGLU, drop path, activation checkpointing.
        levels: Last levels of the encoder that it reads, side by side along the channels; null for all of them. One
            level is read by a single Linear layer, as in the distilled models.
        target_dim: Channels of its output; null for those of the levels that it reads. The width of the teacher in the
            distilled models.

    Raises:
        ValueError: If the encoder does not have so many levels.
    """

    def __init__(
        self,
        encoder: DenseVisionTransformer,
        embed_dim: int = 384,
        depth: int = 24,
        num_heads: int | None = 12,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        depth_rescale: bool = True,
        num_mask_tokens: int = 1,
        mask_token_std: float = 0.0,
        blocks: BlockOptions | Trunk | None = None,
        levels: int | None = None,
        target_dim: int | None = None,
    ) -> None:
        super().__init__(
            encoder, embed_dim, depth, num_heads, mlp_ratio, init_std, depth_rescale, num_mask_tokens, mask_token_std,
            blocks,
        )  # fmt: skip
        self.levels = len(encoder.levels) if levels is None else levels
        if not 1 <= self.levels <= len(encoder.levels):
            raise ValueError(
                f"levels {levels} of an encoder with {len(encoder.levels)}: use 1 to {len(encoder.levels)}"
            )
        self.input_dim = self.levels * encoder.embed_dim
        self.target_dim = self.input_dim if target_dim is None else target_dim
        if self.levels > 1:
            first, second = nn.Linear(self.input_dim, encoder.embed_dim), nn.Linear(encoder.embed_dim, embed_dim)
            self.predictor_embed = nn.Sequential(first, nn.GELU(), second)
        self.predictor_proj = nn.Linear(embed_dim, self.target_dim)
        self.predictor_proj_context = nn.Linear(embed_dim, self.target_dim)
        for part in (self.predictor_embed, self.predictor_proj, self.predictor_proj_context):
            init_weights(part, init_std)
        self.video_mod_embed = nn.Parameter(MODALITY_STD * torch.randn(1, 1, embed_dim))
        self.img_mod_embed = nn.Parameter(MODALITY_STD * torch.randn(1, 1, embed_dim))

    def reads(
        self, encoder: Any, inputs: Float[Tensor, "batch channels *size"], context: Tensor | Padded | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """What it reads of an encoder, of all tokens or of the context: its levels side by side, (B, Nc, levels D)."""
        return torch.cat(encoder(inputs, context, layers=encoder.levels[-self.levels :]), dim=-1)

    def forward(  # type: ignore[override]  # nothing to noise here
        self,
        context_tokens: Float[Tensor, "batch nc dim"],
        context: Int[Tensor, "batch nc"] | Padded,
        targets: Int[Tensor, "batch m nt"] | Padded,
        mask_index: int = 0,
        grid: Grid | None = None,
        *,
        image: bool | None = None,
        with_context: bool = False,
    ) -> Any:
        """Predict the tokens at ``targets``, (B, M, Nt, target_dim), from those at ``context``.

        Args:
            context_tokens: Levels of the context encoder side by side, (B, Nc, levels D).
            context: Where these tokens are in the grid.
            targets: Where to predict, M blocks for each sample; with Padded the result has zeros where no token is.
            mask_index: Which mask token is used.
            grid: The grid that the indices refer to; None for that of clips as the encoder was built for.
            image: The inputs are images, not clips; None if that follows from a grid with several steps in time or one.
            with_context: Also give the predicted tokens at the context, (B, M, Nc, target_dim).
        """
        context, targets = alike(context, targets)
        image = (grid or self.grid)[0] == 1 if image is None else image
        kind = (self.img_mod_embed if image else self.video_mod_embed)[0]
        shown = context.pack(context_tokens) if isinstance(context, Padded) else context_tokens
        shown, asked = self.predictor_embed(shown) + kind, self.asked(mask_index, None) + kind
        predicted, recovered = self.run(shown, asked, context, targets, grid)
        predicted = self.predictor_proj(self.predictor_norm(predicted))
        predicted = targets.pad(predicted) if isinstance(targets, Padded) else predicted
        if not with_context:
            return predicted
        recovered = self.predictor_proj_context(self.predictor_norm(recovered))
        if isinstance(context, Padded):  # block after block
            blocks = recovered.split(len(context.places))
            recovered = torch.stack([context.pad(block) for block in blocks], dim=1)
        return predicted, recovered

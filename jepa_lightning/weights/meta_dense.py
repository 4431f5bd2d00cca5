"""What the tensors of Meta's checkpoints of V-JEPA 2.1 show about their networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jepa_lightning.models import DensePredictor, DenseVisionTransformer, RoPE
from jepa_lightning.weights.base import Hints
from jepa_lightning.weights.meta_sizes import HEADS, State, depth_of, heads_of, tensor_of
from jepa_lightning.weights.networks import mlp_ratio
from jepa_lightning.weights.policy import DoesNotFit

HEADS_DENSE = {**HEADS, 1408: 22, 1664: 26}
SPREAD = {16: 16, 14: 18}
"""By patch size, the side of the grid over which positions are spread: 256 / 16 and 252 / 14; no other was released."""


def encoder(path: Path, state: State, hints: Hints) -> partial[DenseVisionTransformer]:
    """What builds the encoder that these tensors fit; no tensor depends on size or length.

    Args:
        path: Where they come from, for messages.
        state: They, without prefixes.
        hints: What is known otherwise.

    Raises:
        DoesNotFit: If a tensor is missing that the sizes are read off, or patches have a size that was never released.
        HintNeeded: If the width is no published one and no number of heads is given.
    """
    projection = tensor_of(path, "encoder", state, "patch_embed.proj.weight", 5)  # (D, C, t, p, p)
    embed_dim, in_chans, tubelet_size, _, patch_size = projection.shape
    hidden = tensor_of(path, "encoder", state, "blocks.0.mlp.fc1.weight", 2).shape[0]
    if patch_size not in SPREAD:
        raise DoesNotFit(f"{path}: V-JEPA 2.1 has patches of 16 or 14 pixels, these are {patch_size}")
    return partial(
        DenseVisionTransformer,
        img_size=hints.img_size or 384 // patch_size * patch_size,  # of the released models
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        depth=depth_of(state, "blocks"),
        num_heads=hints.num_heads or heads_of(path, embed_dim, HEADS_DENSE),
        mlp_ratio=mlp_ratio(hidden, embed_dim),
        num_frames=hints.num_frames or max(1, 16 // tubelet_size) * tubelet_size,
        tubelet_size=tubelet_size,
        positions=RoPE(stretch_to=SPREAD[patch_size]),
    )


def predictor(path: Path, state: State, num_heads: int | None) -> Callable[[DenseVisionTransformer], DensePredictor]:
    """What builds the predictor that these tensors fit, for an encoder.

    Args:
        path: Where they come from, for messages.
        state: They, without prefixes.
        num_heads: Attention heads; None for 12 where the width is the published one, else those of the encoder.
    """
    several = "predictor_embed.0.weight" in state
    first = tensor_of(path, "predictor", state, f"predictor_embed{'.0' * several}.weight", 2)
    width = tensor_of(path, "predictor", state, "predictor_norm.weight", 1).shape[0]
    hidden = tensor_of(path, "predictor", state, "predictor_blocks.0.mlp.fc1.weight", 2).shape[0]
    return partial(
        DensePredictor,
        embed_dim=width,
        depth=depth_of(state, "predictor_blocks"),
        num_heads=num_heads or (12 if width == 384 else None),
        mlp_ratio=mlp_ratio(hidden, width),
        num_mask_tokens=sum(name.startswith("mask_tokens.") for name in state) or 1,
        levels=first.shape[1] // first.shape[0] if several else 1,
        target_dim=tensor_of(path, "predictor", state, "predictor_proj.weight", 2).shape[0],
    )

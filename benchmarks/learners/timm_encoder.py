"""A Vision Transformer of timm of the recipe's shape, without class token: what peers' methods are given."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer


def vision_transformer(shape: dict[str, int]) -> VisionTransformer:
    """As timm initialises it."""
    return VisionTransformer(
        img_size=shape["img_size"],
        patch_size=shape["patch_size"],
        embed_dim=shape["embed_dim"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        num_classes=0,
    )

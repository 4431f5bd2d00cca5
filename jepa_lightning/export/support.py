"""Which formats have a place for a model, and for those that have none, why."""

from __future__ import annotations

from typing import cast

from jepa_lightning.export.source import Source
from jepa_lightning.models import DenseVisionTransformer, Encoder, RoPE, VisionTransformer
from jepa_lightning.models.dense_transformer import published_levels
from jepa_lightning.models.layers import MLP, Block
from jepa_lightning.weights.meta_dense import SPREAD
from jepa_lightning.weights.networks import Networks

ANOTHER = "its blocks are not the plain ones (attention, GELU MLP) that other libraries have"


def not_in_huggingface(source: Source) -> str | None:
    """Why transformers has no class for it; None if it has one."""
    networks = source.networks
    encoder = networks.encoder
    reason = _not_plain(encoder)
    if reason or not isinstance(encoder, VisionTransformer):
        return reason
    if encoder.num_frames == 1:
        if encoder.pos_embed is None:
            return "its images have rotary positions, IJepaModel adds a table"
        return "no class has an attentive probe on images" if networks.classifier else _no_predictor(networks)
    if not isinstance(encoder.positions, RoPE):
        return "VJEPA2Model has rotary positions, this encoder of clips (V-JEPA) adds a table"
    if encoder.positions != RoPE(layout="tiled"):
        return _other_rotation("VJEPA2Model has", encoder)
    if encoder.img_size[0] != encoder.img_size[1]:
        return f"VJEPA2Model takes square clips, not {encoder.img_size[0]}x{encoder.img_size[1]}"
    return _no_place_beside_vjepa2(source)


def not_in_timm(source: Source) -> str | None:
    """Why timm has no model for it; None if it has one."""
    encoder = source.networks.encoder
    reason = _not_plain(encoder)
    if reason or not isinstance(encoder, VisionTransformer):
        return reason
    if encoder.num_frames > 1 or encoder.pos_embed is None:
        return "timm's vit_*_ijepa take images and add a table of positions"
    return "timm has no attentive probe" if source.networks.classifier else _no_predictor(source.networks)


def not_in_meta(source: Source) -> str | None:
    """Why Meta's format has no place for it, such that load_meta would read it back; None if it has one."""
    networks = source.networks
    encoder, predictor = networks.encoder, networks.predictor
    reason = _not_dense_of_meta(encoder) if isinstance(encoder, DenseVisionTransformer) else _not_plain(encoder)
    if reason or not isinstance(encoder, VisionTransformer):
        return reason
    if networks.classifier is not None:
        return "a checkpoint in Meta's format has no probe beside the networks"
    if predictor is None and networks.actions is None:
        return "a checkpoint in Meta's format holds a predictor, and here is none"
    dense = isinstance(encoder, DenseVisionTransformer)
    if networks.actions is not None and (dense or not isinstance(encoder.positions, RoPE)):
        return "Meta's predictors of actions have an encoder of V-JEPA 2 (clips, rotary positions)"
    if predictor is not None and (_foreign_blocks(predictor.predictor_blocks) or predictor.target_noise is not None):
        return ANOTHER
    if encoder.num_frames == 1 and (encoder.pos_embed is None or hasattr(predictor, "mask_tokens")):
        return "Meta's image models add a table of positions and have one mask token"
    if not dense and isinstance(encoder.positions, RoPE) and encoder.positions != RoPE(layout="tiled"):
        return _other_rotation("Meta's rotary models have", encoder)
    return None


def _not_dense_of_meta(encoder: DenseVisionTransformer) -> str | None:
    """Why Meta's V-JEPA 2.1 has no place for an encoder; None if it has one."""
    if _foreign_blocks(encoder.blocks):
        return ANOTHER
    side = SPREAD.get(encoder.patch_size)
    if side is None or encoder.positions != RoPE(stretch_to=side):
        sides = ", ".join(f"{side} for patches of {patch}" for patch, side in SPREAD.items())
        return f"Meta's V-JEPA 2.1 spreads its positions over a fixed grid (RoPE with stretch_to {sides})"
    if encoder.levels != published_levels(encoder.depth):
        return f"Meta's V-JEPA 2.1 reads blocks {list(published_levels(encoder.depth))}, not {list(encoder.levels)}"
    return None


def not_in_safetensors(source: Source) -> str | None:
    """Why it cannot be built again from our own file; None if it can."""
    if source.networks.classifier is not None:
        return "the file holds an encoder and perhaps a predictor, but no probe"
    if isinstance(source.networks.encoder, VisionTransformer) or source.encoder_config is not None:
        return None
    return f"nothing says how to build its {type(source.networks.encoder).__name__}"


def never_refused(source: Source) -> str | None:
    """A graph of operations takes everything."""
    return None


def _no_place_beside_vjepa2(source: Source) -> str | None:
    """Of predictor and probe."""
    networks = source.networks
    encoder, predictor, classifier = networks.encoder, networks.predictor, networks.classifier
    if predictor is not None:
        if _foreign_blocks(predictor.predictor_blocks) or predictor.target_noise is not None:
            return f"of the predictor: {ANOTHER}; --no-with_predictor leaves it out"
        if predictor.positions != encoder.positions:
            return f"of the predictor: positions {predictor.positions}; --no-with_predictor leaves it out"
    if classifier is None:
        return None
    heads = cast(int, classifier.pooler.get_submodule("cross_attention_block.xattn").num_heads)
    if heads != encoder.num_heads:
        return (
            f"VJEPA2ForVideoClassification gives the probe as many heads as the encoder, {encoder.num_heads}, "
            f"and this one has {heads}: train it with --model.num_heads {encoder.num_heads}"
        )
    if source.networks.out_layers is not None:
        blocks = list(source.networks.out_layers)
        return f"VJEPA2ForVideoClassification reads the last block only, this probe blocks {blocks}"
    return None


def _other_rotation(who: str, encoder: VisionTransformer) -> str:
    return (
        f"{who} positions RoPE(layout: tiled, theta: 10000), not {encoder.positions}; no weights make one of the other "
        "(train with positions: {class_path: RoPE, init_args: {layout: tiled}})"
    )


def _not_plain(encoder: Encoder) -> str | None:
    if not isinstance(encoder, VisionTransformer):
        return f"its encoder is a {type(encoder).__name__}, not a VisionTransformer"
    if isinstance(encoder, DenseVisionTransformer):
        return "no other library has a class for V-JEPA 2.1 (two patch embeddings, norms of several levels)"
    return ANOTHER if _foreign_blocks(encoder.blocks) else None


def _foreign_blocks(blocks: object) -> bool:
    return not all(type(block) is Block and type(block.mlp) is MLP for block in blocks)  # type: ignore[attr-defined]


def _no_predictor(networks: Networks) -> str | None:
    return "it has no place for a predictor: leave out --with_predictor" if networks.predictor is not None else None

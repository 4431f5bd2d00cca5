"""Writes a checkpoint in Meta's format, as load_meta and Meta's own repositories read it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from jepa_lightning.export.base import OTHER_BLOCKS, Format, not_plain, other_rotation, plain_blocks, section
from jepa_lightning.export.source import Functions, Source, functions_of
from jepa_lightning.models import ActionPredictor, DenseVisionTransformer, Predictor, RoPE, VisionTransformer
from jepa_lightning.models.dense_transformer import published_levels
from jepa_lightning.weights import Hints
from jepa_lightning.weights import open as open_weights
from jepa_lightning.weights.meta_dense import SPREAD

FILE = "checkpoint.pth.tar"


class Meta(Format):
    """``checkpoint.pth.tar`` with encoder, target encoder and predictor; there is no optimizer in it."""

    title = "a checkpoint in Meta's format"
    library = "jepa_lightning"

    def takes_predictor(self, source: Source) -> bool:
        """Always."""
        return True

    def unsupported(self, source: Source) -> str | None:
        """Why load_meta could not read it back."""
        networks = source.networks
        encoder, predictor = networks.encoder, networks.predictor
        reason = _not_dense(encoder) if isinstance(encoder, DenseVisionTransformer) else not_plain(encoder)
        if reason or not isinstance(encoder, VisionTransformer):
            return reason
        if networks.classifier is not None:
            return "a checkpoint in Meta's format has no probe beside the networks"
        if predictor is None and networks.actions is None:
            return "a checkpoint in Meta's format holds a predictor, and here is none"
        dense = isinstance(encoder, DenseVisionTransformer)
        if networks.actions is not None and (dense or not isinstance(encoder.positions, RoPE)):
            return "Meta's predictors of actions have an encoder of V-JEPA 2 (clips, rotary positions)"
        if predictor is not None and (
            not plain_blocks(predictor.predictor_blocks) or predictor.target_noise is not None
        ):
            return OTHER_BLOCKS
        if encoder.num_frames == 1 and (encoder.pos_embed is None or hasattr(predictor, "mask_tokens")):
            return "Meta's image models add a table of positions and have one mask token"
        if not dense and isinstance(encoder.positions, RoPE) and encoder.positions != RoPE(layout="tiled"):
            return other_rotation("Meta's rotary models", encoder)
        return None

    def write(self, source: Source, folder: Path) -> None:
        """Write ``checkpoint.pth.tar``; a source with one encoder writes it as both."""
        networks, other = source.networks, source.other or source.networks.encoder
        context, target = (networks.encoder, other) if networks.branch == "context" else (other, networks.encoder)
        predictor = networks.predictor or networks.actions
        masked = networks.encoder.num_frames > 1 and networks.predictor is not None
        prefix = "module.backbone." if masked else "module."  # DDP, and the wrapper for masks
        assert predictor is not None
        content = {
            "encoder": _prefixed(context, prefix),
            "predictor": _prefixed(predictor, prefix),
            "target_encoder": _prefixed(target, prefix),
            "epoch": source.progress.epoch or 0,
            **dict.fromkeys(("opt", "scaler", "loss", "batch_size", "world_size", "lr")),
        }
        torch.save(content, folder / FILE)

    def reload(self, folder: Path, source: Source) -> Functions:
        """What the networks of the file compute."""
        networks = open_weights(folder / FILE).networks(source.networks.branch, True, hints_for(source))
        return functions_of(networks._replace(mask_index=source.networks.mask_index))

    def usage(self, source: Source) -> str:
        """With jepa_lightning; Meta's own repositories read the file too."""
        arguments = "".join(f", {name}={value}" for name, value in hints_for(source).given.items())
        one = "" if source.other is not None else " The source has one encoder, which is written as both."
        return section(
            f'import jepa_lightning\n\nmodule = jepa_lightning.load_meta("{FILE}"{arguments})',
            f"There is no optimizer in it.{one}",
        )


def hints_for(source: Source) -> Hints:
    """The hints that a reader of the file needs, because no tensor shows them."""
    encoder, predictor = source.networks.encoder, source.networks.predictor or source.networks.actions
    clips = encoder.num_frames > 1
    return Hints(
        num_heads=encoder.num_heads,
        img_size=encoder.img_size,
        num_frames=encoder.num_frames if clips else None,
        predictor_num_heads=predictor.num_heads if isinstance(predictor, Predictor | ActionPredictor) else None,
        rotary=isinstance(encoder.positions, RoPE) if clips else None,
    )


def _prefixed(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}


def _not_dense(encoder: DenseVisionTransformer) -> str | None:
    """Why an encoder is none of Meta's V-JEPA 2.1; None if it is one."""
    if not plain_blocks(encoder.blocks):
        return OTHER_BLOCKS
    side = SPREAD.get(encoder.patch_size)
    if side is None or encoder.positions != RoPE(stretch_to=side):
        sides = ", ".join(f"{side} for patches of {patch}" for patch, side in SPREAD.items())
        return f"Meta's V-JEPA 2.1 spreads its positions over a fixed grid (RoPE with stretch_to {sides})"
    if encoder.levels != published_levels(encoder.depth):
        return f"Meta's V-JEPA 2.1 reads blocks {list(published_levels(encoder.depth))}, not {list(encoder.levels)}"
    return None

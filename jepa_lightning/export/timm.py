"""Writes timm's format of I-JEPA, for ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file

from jepa_lightning.export.base import Format, encoder_only, not_plain, section
from jepa_lightning.export.source import Functions, Source
from jepa_lightning.models import VisionTransformer
from jepa_lightning.models.layers import MLP
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights.networks import mlp_ratio
from jepa_lightning.weights.safetensors_file import BRANCH

ARCHITECTURES = {
    "vit_huge_patch14_gap_224": (1280, 14),
    "vit_huge_patch16_gap_448": (1280, 16),
    "vit_giant_patch16_gap_224": (1408, 16),
}
"""Width and patch size of timm's models for I-JEPA; all have 16 heads."""


class Timm(Format):
    """A folder with ``model.safetensors`` and ``config.json`` of a ``vit_*_ijepa``."""

    title = "a timm model"
    library = "timm"

    def unsupported(self, source: Source) -> str | None:
        """Why timm has no model for it."""
        encoder = source.networks.encoder
        reason = not_plain(encoder)
        if reason or not isinstance(encoder, VisionTransformer):
            return reason
        if encoder.num_frames > 1 or encoder.pos_embed is None:
            return "timm's vit_*_ijepa take images and add a table of positions"
        return "timm has no attentive probe" if source.networks.classifier else encoder_only(source.networks)

    def write(self, source: Source, folder: Path) -> None:
        """Write the encoder."""
        networks = source.networks
        encoder = cast(VisionTransformer, networks.encoder)
        dim, patch_size = encoder.embed_dim, encoder.patch_size
        names = [name for name, sizes in ARCHITECTURES.items() if sizes == (dim, patch_size)]
        hidden = cast(MLP, encoder.blocks[0].mlp).fc1.out_features
        channels = encoder.state_dict()["patch_embed.proj.weight"].shape[1]
        processing = networks.preprocessing
        config = {
            "architecture": names[0] if names else "vit_huge_patch14_gap_224",
            "num_classes": 0,
            "num_features": dim,
            "global_pool": "avg",
            "model_args": {
                "img_size": list(encoder.img_size),
                "patch_size": patch_size,
                "in_chans": channels,
                "embed_dim": dim,
                "depth": encoder.depth,
                "num_heads": encoder.num_heads,
                "mlp_ratio": mlp_ratio(hidden, dim),
            },
            "pretrained_cfg": {
                "input_size": [channels, *encoder.img_size],
                "fixed_input_size": True,
                "interpolation": "bilinear",
                "crop_pct": _crop_pct(processing),
                "crop_mode": "squash" if processing.crop_pct is None else "center",
                "mean": list(processing.mean),
                "std": list(processing.std),
                "num_classes": 0,
                "pool_size": None,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt", BRANCH: networks.branch})

    def reload(self, folder: Path, source: Source) -> Functions:
        """What timm computes."""
        import timm

        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        return Functions(encode=cast(Any, model).forward_features)

    def usage(self, source: Source) -> str:
        """With timm."""
        return section(
            "import timm\n\n"
            'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
            "tokens = model.forward_features(transform(image)[None])  # (B, N, D); model(...) averages them",
            "Other sizes: `create_model(..., img_size=...)`, which resamples the positions in timm's own way.",
        )


def _crop_pct(processing: Preprocessing) -> float:
    """``crop_pct``: timm divides the size by it, and rounds down."""
    shorter = processing.shorter_side
    if shorter is None:
        return 1.0
    fraction = min(processing.size) / shorter
    return fraction if int(min(processing.size) / fraction) == shorter else min(processing.size) / (shorter + 0.5)

"""Where probes get their encoder, and what they say of it: the one place that opens a checkpoint for them."""

from __future__ import annotations

from typing import Any, Literal

from jepa_lightning.models import Encoder, VisionTransformer

Branch = Literal["target", "context"]


def encoder_of(checkpoint: str, branch: Branch = "target", overrides: dict[str, Any] | None = None) -> Encoder:
    """The encoder of a checkpoint of any layout: frozen, in eval mode, on the CPU.

    Args:
        checkpoint: The file, the folder or the name on the hub.
        branch: ``target`` (EMA, which the papers evaluate) or ``context``.
        overrides: What the checkpoint does not say of its encoder: num_heads, img_size, num_frames.
    """
    from jepa_lightning.checkpoint import load_encoder

    return load_encoder(checkpoint, branch, **(overrides or {}))


def untrained_of(checkpoint: str, encoder: Encoder) -> Encoder:
    """The encoder as it was at initialisation: frozen, on the CPU.

    Args:
        checkpoint: The file whose configuration says how it was initialised.
        encoder: The trained encoder of that file; where the file says nothing, a copy of it is initialised again.
    """
    from jepa_lightning.checkpoint import untrained_encoder

    return untrained_encoder(checkpoint, encoder)


def description_of(encoder: Encoder) -> dict[str, Any] | None:
    """``{"class_path": ..., "init_args": {...}}``, from which the encoder can be built; None for unknown kinds."""
    from jepa_lightning.interop.description import describe_encoder

    return describe_encoder(encoder) if isinstance(encoder, VisionTransformer) else None

"""Writes a checkpoint in Meta's format, as load_meta and Meta's own repositories read it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from jepa_lightning.export.source import Functions, Source, functions
from jepa_lightning.models import ActionPredictor, Predictor, RoPE
from jepa_lightning.weights import Hints
from jepa_lightning.weights import open as open_weights

FILE = "checkpoint.pth.tar"


def write_meta(source: Source, folder: Path) -> None:
    """Write ``checkpoint.pth.tar`` with encoder, target encoder and predictor; there is no optimizer in it.

    A source with one encoder gives both the same.

    Args:
        source: What to write; it must have a predictor (see support.py).
        folder: Where; it must be there.
    """
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
        "opt": None,
        "scaler": None,
        "epoch": source.progress.epoch or 0,
        "loss": None,
        "batch_size": None,
        "world_size": None,
        "lr": None,
    }
    torch.save(content, folder / FILE)


def reload_meta(folder: Path, source: Source) -> Functions:
    """What the networks of the file compute."""
    networks = open_weights(folder / FILE).networks(source.networks.branch, True, hints_for(source))
    return functions(source._replace(networks=networks._replace(mask_index=source.networks.mask_index)))


def hints_for(source: Source) -> Hints:
    """What a reader of the file has to be told, because no tensor shows it."""
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

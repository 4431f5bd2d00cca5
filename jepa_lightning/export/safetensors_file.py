"""Writes our own safetensors format: see jepa_lightning/weights/safetensors_file.py."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from jepa_lightning.export.source import Functions, Source, functions
from jepa_lightning.models import VisionTransformer
from jepa_lightning.weights import open as open_weights
from jepa_lightning.weights.description import describe_encoder, describe_predictor
from jepa_lightning.weights.safetensors_file import CHECKSUM, KEY, VERSION, checksum


def write_safetensors(source: Source, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        source: What to write: the encoder, and the predictor if it is given.
        folder: Where; it must be there.

    Raises:
        ValueError: If nothing says how to build the encoder.
    """
    networks, encoder_config = source.networks, source.encoder_config
    encoder, predictor = networks.encoder, networks.predictor
    if encoder_config is None and not isinstance(encoder, VisionTransformer):
        raise ValueError(f"a {type(encoder).__name__} without its configuration has no place in a safetensors file")
    processing = networks.preprocessing
    about = {
        "version": VERSION,
        "branch": networks.branch,
        "encoder": describe_encoder(encoder) if isinstance(encoder, VisionTransformer) else encoder_config,
        "predictor": None if predictor is None else describe_predictor(predictor),
        "preprocessing": {
            "size": list(processing.size),
            "mean": list(processing.mean),
            "std": list(processing.std),
            "shorter_side": processing.shorter_side,
        },
    }
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    if predictor is not None:
        state |= {f"predictor.{name}": tensor.contiguous() for name, tensor in predictor.state_dict().items()}
    header = {"format": "pt", KEY: json.dumps(about), CHECKSUM: checksum(state)}
    save_file(state, folder / "model.safetensors", header)
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")


def reload_safetensors(folder: Path, source: Source) -> Functions:
    """What our own networks compute, built from the file alone."""
    networks = open_weights(folder / "model.safetensors").networks()
    return functions(source._replace(networks=networks._replace(mask_index=source.networks.mask_index)))

"""Writes our own safetensors format: see jepa_lightning/weights/safetensors_file.py."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from jepa_lightning.export.base import Format, input_layout, section, size_step
from jepa_lightning.export.source import Functions, Source, functions_of
from jepa_lightning.models import VisionTransformer
from jepa_lightning.weights import open as open_weights
from jepa_lightning.weights.description import describe_encoder, describe_predictor
from jepa_lightning.weights.safetensors_file import CHECKSUM, KEY, VERSION, checksum


class Safetensors(Format):
    """``model.safetensors`` with the description in its header, and the same description as ``config.json``."""

    title = "a safetensors file"
    library = "jepa_lightning"

    def unsupported(self, source: Source) -> str | None:
        """Why it could not be built again from the file."""
        if source.networks.classifier is not None:
            return "the file holds an encoder and perhaps a predictor, but no probe"
        if isinstance(source.networks.encoder, VisionTransformer) or source.encoder_config is not None:
            return None
        return f"nothing says how to build its {type(source.networks.encoder).__name__}"

    def write(self, source: Source, folder: Path) -> None:
        """Write the encoder, and the predictor if there is one."""
        networks, encoder_config = source.networks, source.encoder_config
        encoder, predictor = networks.encoder, networks.predictor
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

    def reload(self, folder: Path, source: Source) -> Functions:
        """What our own networks compute, built from the file alone."""
        networks = open_weights(folder / "model.safetensors").networks()
        return functions_of(networks._replace(mask_index=source.networks.mask_index))

    def usage(self, source: Source) -> str:
        """With jepa_lightning."""
        return section(
            "import jepa_lightning\n\n"
            'encoder = jepa_lightning.load_encoder("model.safetensors")\n'
            f"tokens = encoder(inputs)  # {input_layout(source)}",
            f"Other sizes work: {size_step(source)}.",
        )

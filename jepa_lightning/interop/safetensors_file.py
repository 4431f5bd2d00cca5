"""One safetensors file with an encoder, and everything that is needed to build and to feed it.

The tensors have the names of our modules; those of a predictor begin with ``predictor.``. The header holds, under the
key ``jepa_lightning``, a JSON object:

    {"version": 1, "branch": "target" or "context",
     "encoder": {"class_path": ..., "init_args": {...}}, "predictor": the same or null,
     "preprocessing": {"size": [height, width], "mean": [...], "std": [...], "shorter_side": pixels or null}}

`jepa export --to safetensors` also writes this object as ``config.json``, to be read by people. A file is only data:
a class of a package that is not imported yet is refused.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jepa_lightning.interop.description import (
    build_encoder,
    build_predictor,
    describe_encoder,
    describe_predictor,
    device_for,
)
from jepa_lightning.interop.networks import Networks, Preprocessing, filled
from jepa_lightning.models import Encoder, VisionTransformer

KEY = "jepa_lightning"
BRANCH = "jepa_lightning_branch"
"""In the header of files in other layouts, which cannot say which of the two encoders they hold."""
VERSION = 1


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, memory-mapped, and the free text of its header.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a whole safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({str(error)[:200]}): copy it again") from error


def load_safetensors(path: str | Path) -> Encoder:
    """The encoder of a file that `jepa export --to safetensors` wrote, frozen, on the CPU.

    Args:
        path: The file, or the folder with its ``model.safetensors``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, or a tensor is missing, unexpected or of the wrong shape.
    """
    return read_networks(path).encoder


def read_networks(path: str | Path) -> Networks:
    """All that such a file holds; see load_safetensors."""
    path = Path(path).expanduser()
    path = path / "model.safetensors" if path.is_dir() else path
    state, metadata = read_tensors(path)
    try:
        about: dict[str, Any] = json.loads(metadata[KEY])
        version, encoder_config, branch = about["version"], about["encoder"], about["branch"]
        preprocessing = {**about["preprocessing"], "size": tuple(about["preprocessing"]["size"])}
        preprocessing |= {name: tuple(preprocessing[name]) for name in ("mean", "std")}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} has no description of a network under {KEY!r} in its header: was it written by "
            "`jepa export --to safetensors`?"
        ) from error
    if version != VERSION:
        raise ValueError(
            f"{path} is of version {version} of this format, this is {VERSION}: pip install -U jepa-lightning"
        )
    predicting = {name: tensor for name, tensor in state.items() if name.startswith("predictor.")}
    encoding = {name: tensor for name, tensor in state.items() if name not in predicting}
    build = partial(build_encoder, path, encoder_config)
    encoder = filled(path, "encoder", build, encoding, device_for(encoder_config))
    predictor = None
    if about.get("predictor"):
        factory = partial(build_predictor, path, about["predictor"], encoder)
        state = {name.removeprefix("predictor."): tensor for name, tensor in predicting.items()}
        predictor = filled(path, "predictor", factory, state, device_for(about["predictor"]))
    return Networks(encoder, branch, Preprocessing(**preprocessing), predictor)


def write_safetensors(networks: Networks, folder: Path, encoder_config: dict[str, Any] | None = None) -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        networks: What to write: the encoder, and the predictor if it is given.
        folder: Where; it must be there.
        encoder_config: The ``encoder`` section of a configuration, for an encoder that is no VisionTransformer.

    Raises:
        ValueError: If there is neither that section nor a VisionTransformer.
    """
    encoder, predictor = networks.encoder, networks.predictor
    if encoder_config is None and not isinstance(encoder, VisionTransformer):
        raise ValueError(f"a {type(encoder).__name__} without its configuration has no place in a safetensors file")
    about = {
        "version": VERSION,
        "branch": networks.branch,
        "encoder": describe_encoder(encoder) if isinstance(encoder, VisionTransformer) else encoder_config,
        "predictor": None if predictor is None else describe_predictor(predictor),
        "preprocessing": networks.preprocessing._asdict(),
    }
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    if predictor is not None:
        state |= {f"predictor.{name}": tensor.contiguous() for name, tensor in predictor.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt", KEY: json.dumps(about)})
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")

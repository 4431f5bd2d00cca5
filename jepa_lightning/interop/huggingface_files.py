"""The files of a folder in Hugging Face's layout: configuration, tensors in one file or several, processor."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa_lightning.interop.networks import Preprocessing, papers_preprocessing
from jepa_lightning.interop.safetensors_file import read_tensors


def local(directory: str | Path) -> Path:
    """The folder itself, downloaded first if it is the name of one on the hub."""
    path = Path(directory).expanduser()
    if path.is_dir():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(directory)) and not path.parent.exists():
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise FileNotFoundError(
                f"no such folder: {path}; to download it from the hub, pip install 'jepa-lightning[export]'"
            ) from error
        try:
            return Path(snapshot_download(str(directory), allow_patterns=["*.json", "*.safetensors"]))
        except (OSError, ValueError) as error:  # no network, or no such name: its errors are one or the other
            raise FileNotFoundError(
                f"no such folder: {path}, and it cannot be downloaded ({str(error).splitlines()[0]}): without a "
                f"network, copy it from elsewhere (hf download {directory} --local-dir FOLDER) and give the folder"
            ) from error
    raise FileNotFoundError(f"no such folder: {path}; give one with config.json and model.safetensors")


def config_of(path: Path) -> dict[str, Any]:
    """What ``config.json`` says."""
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no config.json: is it a folder in Hugging Face's layout?")
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is no valid JSON object: {error}") from error


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, of one file or of several that an index names, and what stands in the header of the first."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return read_tensors(path / "model.safetensors")
    if not index.is_file():
        raise FileNotFoundError(
            f"{path} has neither model.safetensors nor {index.name}: save it with safe_serialization=True"
        )
    try:
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is no valid index of safetensors files: {error}") from error
    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file:  # a file must not send us elsewhere
            raise ValueError(f"{index} names {file}, which is not in this folder")
        found, about = read_tensors(path / file)
        state, metadata = {**state, **found}, metadata or about
    if set(state) != set(where):
        wrong = sorted(set(state) ^ set(where))[0]
        raise ValueError(f"{index} and the files that it names do not agree on {wrong}: is the folder whole?")
    return state, metadata


def preprocessing_of(path: Path, size: tuple[int, int]) -> Preprocessing:
    """What the processor of the folder does; that of the papers where there is none."""
    files = [path / name for name in ("video_preprocessor_config.json", "preprocessor_config.json")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return papers_preprocessing(size)
    try:
        about = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no valid JSON: {error}") from error
    shorter, crop = about.get("size"), about.get("crop_size")
    shorter = shorter.get("shortest_edge") if isinstance(shorter, dict) else shorter
    cut = about.get("do_center_crop", crop is not None) and crop is not None
    normalized = about.get("do_normalize", True)
    size = size_of(crop) if cut else size
    if cut and shorter is not None:  # of a square image
        shorter = round(shorter * min(size) / max(size))
    return Preprocessing(
        size,
        tuple(about.get("image_mean", (0.5,) * 3)) if normalized else (0.0,) * 3,
        tuple(about.get("image_std", (0.5,) * 3)) if normalized else (1.0,) * 3,
        shorter if cut else None,
    )


def size_of(size: Any) -> tuple[int, int]:
    """Height and width, however a configuration puts it: one number, two, or by name."""
    if isinstance(size, dict):
        return (int(size["height"]), int(size["width"]))
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

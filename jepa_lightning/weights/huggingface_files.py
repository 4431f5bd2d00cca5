"""The files of a folder in Hugging Face's format: tensors in one file or several, and the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights.file import read_json, read_safetensors
from jepa_lightning.weights.policy import Unreadable


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, of one file or of several that an index names, and the text in the header of the first."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return read_safetensors(path / "model.safetensors")
    if not index.is_file():
        raise FileNotFoundError(
            f"{path} has neither model.safetensors nor {index.name}: save it with safe_serialization=True"
        )
    try:
        where: dict[str, str] = dict(read_json(index)["weight_map"])
    except (TypeError, KeyError, ValueError) as error:
        raise Unreadable(f"{index} is no valid index of safetensors files: {error}") from error
    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file:  # a file must not name a path outside of the folder
            raise Unreadable(f"{index} names {file}, which is not in this folder")
        found, about = read_safetensors(path / file)
        state, metadata = {**state, **found}, metadata or about
    if set(state) != set(where):
        wrong = sorted(set(state) ^ set(where))[0]
        raise Unreadable(f"{index} and the files that it names do not agree on {wrong}: is the folder whole?")
    return state, metadata


def preprocessing_of(path: Path, size: tuple[int, int]) -> Preprocessing:
    """The preprocessing that the processor of the folder describes; that of the papers without one."""
    files = [path / name for name in ("video_preprocessor_config.json", "preprocessor_config.json")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return Preprocessing(size)
    about = read_json(file)
    shorter, crop = about.get("size"), about.get("crop_size")
    shorter = shorter.get("shortest_edge") if isinstance(shorter, dict) else shorter
    cut = about.get("do_center_crop", crop is not None) and crop is not None
    normalized = about.get("do_normalize", True)
    size = size_of(crop) if cut else size
    if cut and shorter is not None:  # of a square image
        shorter = round(shorter * min(size) / max(size))
    wanted = Preprocessing(
        size,
        mean=tuple(about.get("image_mean", (0.5,) * 3)) if normalized else (0.0,) * 3,
        std=tuple(about.get("image_std", (0.5,) * 3)) if normalized else (1.0,) * 3,
    )
    return wanted.with_shorter_side(shorter if cut else None)


def size_of(size: Any) -> tuple[int, int]:
    """Height and width of a size that is one number, two numbers, or a dict with both names."""
    if isinstance(size, dict):
        return (int(size["height"]), int(size["width"]))
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

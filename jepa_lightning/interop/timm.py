"""timm's files of I-JEPA, in both directions: ``vit_*_ijepa``, Vision Transformers without class token, mean-pooled.

timm takes the *context* encoder out of Meta's checkpoints. Tensors have the same names as here. A file says nothing of
the attention heads: they follow from a ``config.json`` beside it, from a published width, or are given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file
from torch import Tensor

from jepa_lightning.interop.meta_sizes import HEADS, depth_of, heads_of, side_of, tensor_of
from jepa_lightning.interop.networks import (
    Branch,
    Networks,
    Preprocessing,
    describing,
    filled,
    mlp_ratio,
    papers_preprocessing,
)
from jepa_lightning.interop.safetensors_file import BRANCH, read_tensors
from jepa_lightning.interop.source import Functions, Source
from jepa_lightning.models import VisionTransformer
from jepa_lightning.models.layers import MLP
from jepa_lightning.untrusted import read_torch

FILES = ("model.safetensors", "pytorch_model.bin")
ARCHITECTURES = {
    "vit_huge_patch14_gap_224": (1280, 14),
    "vit_huge_patch16_gap_448": (1280, 16),
    "vit_giant_patch16_gap_224": (1408, 16),
}
"""Width and patch size of timm's models for I-JEPA; all have 16 heads."""


def load_timm(path: str | Path, num_heads: int | None = None, img_size: tuple[int, int] | None = None) -> Networks:
    """The encoder of a file in timm's layout, frozen, on the CPU, in float32.

    Args:
        path: A file of tensors (safetensors or torch.save), or a folder with one beside its ``config.json``.
        num_heads: Attention heads; needed where nothing says them.
        img_size: Height and width; needed where positions are no square grid and nothing says it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a Vision Transformer as I-JEPA's, or a tensor is missing, unexpected or of the wrong shape.
    """
    path = Path(path).expanduser()
    file, config = _found(path)
    state, branch = _read(file)
    with describing(file):
        sizes = _sizes(file, state, config.get("model_args", {}), num_heads, img_size)
    encoder = filled(file, "encoder", partial(VisionTransformer, **sizes), state)
    if branch == "context":
        rank_zero_info(f"{path} holds the context encoder, as timm's I-JEPA do; the papers evaluate the target")
    return Networks(encoder, branch, _preprocessing(config.get("pretrained_cfg"), encoder.img_size))


def _sizes(
    file: Path, state: dict[str, Tensor], said: dict[str, Any], num_heads: int | None, img_size: tuple[int, int] | None
) -> dict[str, Any]:
    """Constructor arguments of the encoder, by its tensors, by the configuration, and as given."""
    projection = tensor_of(file, "encoder", state, "patch_embed.proj.weight", 4)
    dim, patch_size = projection.shape[0], projection.shape[-1]
    tokens = tensor_of(file, "encoder", state, "pos_embed", 3).shape[1]
    return {
        "img_size": img_size or _size(said.get("img_size")) or side_of(file, tokens, patch_size),
        "patch_size": patch_size,
        "in_chans": projection.shape[1],
        "embed_dim": dim,
        "depth": depth_of(state, "blocks"),
        "num_heads": num_heads or said.get("num_heads") or heads_of(file, dim, HEADS),
        "mlp_ratio": mlp_ratio(tensor_of(file, "encoder", state, "blocks.0.mlp.fc1.weight", 2).shape[0], dim),
    }


def write_timm(networks: Networks, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json``, for ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

    Args:
        networks: What to write; of these timm has a place for the encoder.
        folder: Where; it must be there.
    """
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
            "crop_pct": _crop_share(processing),
            "crop_mode": "center" if processing.shorter_side else "squash",
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
    save_file(state, folder / FILES[0], {"format": "pt", BRANCH: networks.branch})


def reload_timm(folder: Path, source: Source) -> Functions:
    """What timm computes."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    encode: Callable[[Tensor], Tensor] = cast(Any, model).forward_features
    return Functions(encode=encode)


def _found(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the tensors, and the configuration beside it."""
    folder = path if path.is_dir() else path.parent
    file = next((folder / name for name in FILES if (folder / name).is_file()), path) if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {path}" + (f" with {' or '.join(FILES)}" if path.is_dir() else ""))
    about = folder / "config.json"
    if not about.is_file():
        return file, {}
    try:
        config = json.loads(about.read_text())
    except ValueError as error:
        raise ValueError(f"{about} is no valid JSON: {error}") from error
    return file, config if isinstance(config, dict) and "architecture" in config else {}


def _read(file: Path) -> tuple[dict[str, Tensor], Branch]:
    if file.suffix == ".safetensors":
        state, metadata = read_tensors(file)
        return state, cast(Branch, metadata.get(BRANCH, "context"))
    state = read_torch(file)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file} is no state dict of timm: it holds more than tensors")
    return state, "context"


def _size(size: Any) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1])) if size else None


def _preprocessing(config: dict[str, Any] | None, size: tuple[int, int]) -> Preprocessing:
    if not config or "mean" not in config:
        return papers_preprocessing(size)
    cut = config.get("crop_mode", "center") != "squash"
    shorter = int(min(size) / config.get("crop_pct", 0.875))  # timm rounds down as well
    return Preprocessing(size, tuple(config["mean"]), tuple(config["std"]), shorter if cut else None)


def _crop_share(processing: Preprocessing) -> float:
    """``crop_pct``: timm divides the size by it, and rounds down."""
    if processing.shorter_side is None:
        return 1.0
    share = min(processing.size) / processing.shorter_side
    exact = int(min(processing.size) / share) == processing.shorter_side
    return share if exact else min(processing.size) / (processing.shorter_side + 0.5)

"""Reads the checkpoints of Meta's ijepa repository: ``{encoder, predictor, target_encoder, opt, epoch, ...}``.

The weights that Meta released are CC BY-NC 4.0; this reader is not derived from their code.
"""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa_lightning.methods import IJEPA
from jepa_lightning.models import SIZES, Predictor, VisionTransformer
from jepa_lightning.schedules import Cosine, Linear, WarmupCosine

NETWORKS = ("encoder", "predictor", "target_encoder")
HEADS = {int(size["embed_dim"]): int(size["num_heads"]) for size in SIZES.values()}


def load_meta(
    path: str | Path,
    num_heads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    predictor_num_heads: int | None = None,
    **overrides: Any,
) -> IJEPA:
    """An IJEPA with all three networks of a checkpoint in Meta's layout; every tensor is used, or it is an error.

    Args:
        path: The file, for example ``IN1K-vit.h.14-300e.pth.tar``.
        num_heads: Attention heads; needed where the width is none of the published sizes, because no tensor shows it.
        img_size: Size in pixels of the training images; read off the (square) position table if None.
        predictor_num_heads: Attention heads of the predictor, if not those of the encoder.
        **overrides: Other constructor arguments of IJEPA (lr, weight_decay, momentum, betas, ipe_scale, compile).
            The schedules default to the published ones for 300 epochs.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of this layout, or a tensor is missing, unexpected or of the wrong shape.
    """
    path = Path(path)
    states = {name: _strip(state) for name, state in _read(path).items()}
    encoder = _encoder(path, states["encoder"], num_heads, img_size)
    arguments: dict[str, Any] = {
        "lr": WarmupCosine(start=2e-4, peak=1e-3, final=1e-6, warmup_epochs=40),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.996, final=1.0),
        **overrides,
    }
    predictor = _predictor(path, states["predictor"], predictor_num_heads)
    module = IJEPA(encoder, predictor, **arguments)
    for name, state in states.items():
        _load(path, name, module.get_submodule(name), state)
    return module


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts of the three networks, memory-mapped."""
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a PyTorch checkpoint that can be read safely: {reason}") from error
    missing = [name for name in NETWORKS if not isinstance(content, dict) or not isinstance(content.get(name), dict)]
    if missing:
        raise ValueError(f"{path} is no I-JEPA checkpoint in Meta's layout: it has no {', '.join(missing)}")
    return {name: content[name] for name in NETWORKS}


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the one leading ``module.`` that DDP put there."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _depth(state: dict[str, Tensor], blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _tensor(path: Path, network: str, state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"{path}: {network} has no tensor {name}; is it an I-JEPA checkpoint?")
    return state[name]


def _encoder(
    path: Path, state: dict[str, Tensor], num_heads: int | None, img_size: int | tuple[int, int] | None
) -> VisionTransformer:
    """An encoder of the architecture that the tensors show."""
    projection = _tensor(path, "encoder", state, "patch_embed.proj.weight")  # (D, C, p, p)
    embed_dim, in_chans, patch_size = projection.shape[0], projection.shape[1], projection.shape[-1]
    tokens = _tensor(path, "encoder", state, "pos_embed").shape[1]
    if num_heads is None:
        num_heads = HEADS.get(embed_dim)
    if num_heads is None:
        raise ValueError(f"{path}: embed_dim {embed_dim} is no published size: give num_heads=")
    if img_size is None:
        side = round(tokens**0.5)
        if side * side != tokens:
            raise ValueError(f"{path}: {tokens} positions are no square grid: give img_size=(height, width)")
        img_size = side * patch_size
    hidden = _tensor(path, "encoder", state, "blocks.0.mlp.fc1.weight").shape[0]
    return VisionTransformer(
        img_size, patch_size, in_chans, embed_dim, _depth(state, "blocks"), num_heads, _ratio(hidden, embed_dim)
    )


def _predictor(path: Path, state: dict[str, Tensor], num_heads: int | None) -> partial[Predictor]:
    width = _tensor(path, "predictor", state, "predictor_embed.weight").shape[0]
    hidden = _tensor(path, "predictor", state, "predictor_blocks.0.mlp.fc1.weight").shape[0]
    depth = _depth(state, "predictor_blocks")
    return partial(Predictor, embed_dim=width, depth=depth, num_heads=num_heads, mlp_ratio=_ratio(hidden, width))


def _ratio(hidden: int, dim: int) -> float:
    """The mlp_ratio whose int(dim * ratio) is ``hidden``, in spite of rounding (48/11 * 1408)."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


def _load(path: Path, name: str, network: nn.Module, state: dict[str, Tensor]) -> None:
    expected = network.state_dict()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {list(state[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path}: {name} does not fit: {shown}")
    network.load_state_dict(state)

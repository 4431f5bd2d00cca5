"""Reads the checkpoints of Meta's ijepa, jepa and vjepa2 repositories: ``{encoder, predictor, target_encoder, ...}``.

The weights that Meta released for I-JEPA and V-JEPA are CC BY-NC 4.0; this reader is not derived from their code.
"""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jepa_lightning.methods import IJEPA, VJEPA
from jepa_lightning.models import SIZES, Positions, Predictor, RoPE, SinCos3D, VisionTransformer
from jepa_lightning.models.vision_transformer import pair, token_grid
from jepa_lightning.schedules import Constant, Cosine, Linear, WarmupCosine

NETWORKS = ("encoder", "predictor", "target_encoder")
HEADS = {int(size["embed_dim"]): int(size["num_heads"]) for name, size in SIZES.items() if name != "giant_xformers"}
HEADS_V2 = {**HEADS, 1408: 22}
LEGACY = ("pos_embed", "predictor_pos_embed")
"""Left in the released files of V-JEPA 2, whose rotary networks do not use them."""
MASK_TOKENS_V2 = 10
"""In the released files of V-JEPA 2; a position table beside any other number is V-JEPA's, and used."""
SCHEDULES: dict[str, dict[str, Any]] = {
    "I-JEPA": {
        "lr": WarmupCosine(start=2e-4, peak=1e-3, final=1e-6, warmup_epochs=40),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.996, final=1.0),
    },
    "V-JEPA": {
        "lr": WarmupCosine(start=2e-4, peak=6.25e-4, final=1e-6, warmup_epochs=40),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.998, final=1.0),
        "ipe_scale": 1.25,
    },
    "V-JEPA 2": {
        "lr": WarmupCosine(start=1e-4, peak=5.25e-4, final=5.25e-4, warmup_epochs=40),
        "weight_decay": Constant(0.04),
        "momentum": Constant(0.99925),
        "share_mask_token": True,
    },
}
"""The published ones."""


class Given(NamedTuple):
    """What the caller says about the encoder, None where it is to be read off the tensors."""

    num_heads: int | None
    img_size: int | tuple[int, int] | None
    num_frames: int | None
    rotary: bool


def load_meta(
    path: str | Path,
    num_heads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    predictor_num_heads: int | None = None,
    num_frames: int | None = None,
    rotary: bool | None = None,
    **overrides: Any,
) -> IJEPA | VJEPA:
    """The method with all three networks of a checkpoint in Meta's layout; every tensor is used, or it is an error.

    A file with a 2-D patch projection is I-JEPA, with a 3-D one V-JEPA, and among those one without position tables,
    or with the ten mask tokens of the released files, is V-JEPA 2.

    Args:
        path: The file, for example ``IN1K-vit.h.14-300e.pth.tar``, ``vitl16.pth.tar`` or ``vitl.pt``.
        num_heads: Attention heads; needed where the width is none of the published sizes, because no tensor shows it.
        img_size: Size in pixels of the training inputs; read off the (square) position table if None, 256 or what
            patches cover of it for V-JEPA 2, which has none (any size works).
        predictor_num_heads: Attention heads of the predictor, if not those of the encoder (V-JEPA 2: 12).
        num_frames: Frames of the training clips; read off the position table if None, 16 for V-JEPA 2.
        rotary: Whether the networks have rotary positions; None to tell from the tensors.
        **overrides: Other constructor arguments of the method (lr, weight_decay, momentum, betas, ipe_scale, compile,
            loss_exp, share_mask_token). The schedules default to the published ones.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of this layout, or a tensor is missing, unexpected or of the wrong shape.
    """
    path = Path(path)
    states = {name: _strip(state) for name, state in _read(path).items()}
    video = _tensor(path, "encoder", states["encoder"], "patch_embed.proj.weight").ndim == 5
    if rotary is None:
        tokens = sum(name.startswith("mask_tokens.") for name in states["predictor"])
        rotary = video and ("pos_embed" not in states["encoder"] or tokens == MASK_TOKENS_V2)
    if rotary:
        states = {net: {k: v for k, v in state.items() if k not in LEGACY} for net, state in states.items()}
    given = Given(num_heads, img_size, num_frames, rotary)
    encoder = (_video_encoder if video else _image_encoder)(path, states["encoder"], given)
    predictor = _predictor(path, states["predictor"], predictor_num_heads, rotary)
    family = "V-JEPA 2" if rotary else "V-JEPA" if video else "I-JEPA"
    module = (VJEPA if video else IJEPA)(encoder, predictor, **{**SCHEDULES[family], **overrides})
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
        raise ValueError(f"{path} is no JEPA checkpoint in Meta's layout: it has no {', '.join(missing)}")
    return {name: content[name] for name in NETWORKS}


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the one leading ``module.`` that DDP put there, and the ``backbone.`` of the mask wrapper."""
    return {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in state.items()}


def _depth(state: dict[str, Tensor], blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _tensor(path: Path, network: str, state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"{path}: {network} has no tensor {name}; is it a JEPA checkpoint?")
    return state[name]


def _sizes(path: Path, state: dict[str, Tensor], given: Given) -> dict[str, Any]:
    """Constructor arguments of the encoder that the tensors show, beside its grid."""
    projection = _tensor(path, "encoder", state, "patch_embed.proj.weight")  # (D, C, [t,] p, p)
    embed_dim = projection.shape[0]
    table = HEADS_V2 if given.rotary else HEADS
    num_heads = table.get(embed_dim) if given.num_heads is None else given.num_heads
    if num_heads is None:
        raise ValueError(f"{path}: embed_dim {embed_dim} is no published size: give num_heads=")
    hidden = _tensor(path, "encoder", state, "blocks.0.mlp.fc1.weight").shape[0]
    return {
        "patch_size": projection.shape[-1],
        "in_chans": projection.shape[1],
        "embed_dim": embed_dim,
        "depth": _depth(state, "blocks"),
        "num_heads": num_heads,
        "mlp_ratio": _ratio(hidden, embed_dim),
    }


def _image_encoder(path: Path, state: dict[str, Tensor], given: Given) -> VisionTransformer:
    sizes = _sizes(path, state, given)
    tokens = _tensor(path, "encoder", state, "pos_embed").shape[1]
    return VisionTransformer(given.img_size or _side(path, tokens, sizes["patch_size"]), **sizes)


def _video_encoder(path: Path, state: dict[str, Tensor], given: Given) -> VisionTransformer:
    sizes = _sizes(path, state, given)
    tubelet_size = state["patch_embed.proj.weight"].shape[2]
    if given.rotary:  # no tensor depends on size or length
        positions: Positions = RoPE(layout="tiled")
        img_size = given.img_size or 256 // sizes["patch_size"] * sizes["patch_size"]
        num_frames = given.num_frames or max(1, 16 // tubelet_size) * tubelet_size
    else:
        table = _tensor(path, "encoder", state, "pos_embed")[0]  # (N, D); channel 0 is sin(time)
        later = (table[:, 0] != table[0, 0]).nonzero()
        area = int(later[0]) if len(later) else len(table)
        img_size = given.img_size or _side(path, area, sizes["patch_size"])
        num_frames = given.num_frames or len(table) // area * tubelet_size
        grid = token_grid(*pair(img_size), sizes["patch_size"], num_frames, tubelet_size)
        shares = (True, False) if sizes["embed_dim"] % 8 == 0 else (True,)  # what each coordinate can have
        candidates = [SinCos3D(uniform_power=uniform) for uniform in shares]
        tables = [candidate.table(grid, sizes["embed_dim"])[0] for candidate in candidates]
        fits = [t.shape == table.shape and bool((t - table).abs().max() < 1e-4) for t in tables]
        if not any(fits):
            raise ValueError(
                f"{path}: pos_embed {list(table.shape)} is no sine-cosine table for clips of {num_frames} frames of "
                f"{img_size} pixels: give img_size= and num_frames= of the training"
            )
        positions = candidates[fits.index(True)]
    return VisionTransformer(img_size, **sizes, num_frames=num_frames, tubelet_size=tubelet_size, positions=positions)


def _side(path: Path, tokens: int, patch_size: int) -> int:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{path}: {tokens} positions are no square grid: give img_size=(height, width)")
    return side * patch_size


def _predictor(path: Path, state: dict[str, Tensor], num_heads: int | None, rotary: bool) -> partial[Predictor]:
    width = _tensor(path, "predictor", state, "predictor_embed.weight").shape[0]
    hidden = _tensor(path, "predictor", state, "predictor_blocks.0.mlp.fc1.weight").shape[0]
    mask_tokens = sum(name.startswith("mask_tokens.") for name in state)
    if num_heads is None and rotary and width == 384:
        num_heads = 12  # V-JEPA 2; elsewhere as many as the encoder has
    return partial(
        Predictor,
        embed_dim=width,
        depth=_depth(state, "predictor_blocks"),
        num_heads=num_heads,
        mlp_ratio=_ratio(hidden, width),
        num_mask_tokens=mask_tokens or None,
    )


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

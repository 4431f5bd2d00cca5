"""Sizes of networks, read off the tensors of Meta's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from jepa_lightning.models import SIZES, Positions, RoPE, SinCos3D
from jepa_lightning.models.vision_transformer import pair, token_grid
from jepa_lightning.weights.base import Hints
from jepa_lightning.weights.networks import mlp_ratio
from jepa_lightning.weights.policy import DoesNotFit, HintNeeded

HEADS = {int(size["embed_dim"]): int(size["num_heads"]) for name, size in SIZES.items() if name != "giant_xformers"}
HEADS_V2 = {**HEADS, 1408: 22}
State = dict[str, Tensor]


def encoder_arguments(path: Path, state: State, hints: Hints) -> dict[str, Any]:
    """Constructor arguments of the VisionTransformer that these tensors fit.

    Args:
        path: Where they come from, for messages.
        state: The tensors, without prefixes.
        hints: Sizes that the tensors do not show; ``rotary`` must be set.

    Raises:
        DoesNotFit: If a tensor is missing that the sizes are read off.
        HintNeeded: If the tensors do not show what is needed.
    """
    projection = tensor_of(path, "encoder", state, "patch_embed.proj.weight", 4, 5)  # (D, C, [t,] p, p)
    embed_dim = projection.shape[0]
    num_heads = hints.num_heads or heads_of(path, embed_dim, HEADS_V2 if hints.rotary else HEADS)
    hidden = tensor_of(path, "encoder", state, "blocks.0.mlp.fc1.weight", 2).shape[0]
    sizes: dict[str, Any] = {
        "patch_size": projection.shape[-1],
        "in_chans": projection.shape[1],
        "embed_dim": embed_dim,
        "depth": depth_of(state, "blocks"),
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio(hidden, embed_dim),
    }
    if projection.ndim == 4:
        tokens = tensor_of(path, "encoder", state, "pos_embed", 3).shape[1]
        return {**sizes, "img_size": hints.img_size or side_of(path, tokens, sizes["patch_size"])}
    return {**sizes, **_clips(path, state, hints, sizes)}


def _clips(path: Path, state: State, hints: Hints, sizes: dict[str, Any]) -> dict[str, Any]:
    """Size, length and positions of an encoder of clips."""
    patch_size, tubelet_size = sizes["patch_size"], state["patch_embed.proj.weight"].shape[2]
    if hints.rotary:  # no tensor depends on size or length
        positions: Positions = RoPE(layout="tiled")
        img_size = hints.img_size or 256 // patch_size * patch_size
        num_frames = hints.num_frames or max(1, 16 // tubelet_size) * tubelet_size
    else:
        table = tensor_of(path, "encoder", state, "pos_embed", 3)[0]  # (N, D); channel 0 is sin(time)
        later = (table[:, 0] != table[0, 0]).nonzero()
        area = int(later[0]) if len(later) else len(table)
        img_size = hints.img_size or side_of(path, area, patch_size)
        num_frames = hints.num_frames or len(table) // area * tubelet_size
        positions = _sincos(path, table, img_size, num_frames, (patch_size, tubelet_size))
    return {"img_size": img_size, "num_frames": num_frames, "tubelet_size": tubelet_size, "positions": positions}


def _sincos(
    path: Path, table: Tensor, img_size: int | tuple[int, int], num_frames: int, box: tuple[int, int]
) -> SinCos3D:
    """The kind of sine-cosine positions whose table this is."""
    grid, dim = token_grid(*pair(img_size), box[0], num_frames, box[1]), table.shape[1]
    shares = (True, False) if dim % 8 == 0 else (True,)  # what each coordinate can have
    for candidate in (SinCos3D(uniform_power=uniform) for uniform in shares):
        expected = candidate.table(grid, dim)[0]
        if expected.shape == table.shape and bool((expected - table).abs().max() < 1e-4):
            return candidate
    raise HintNeeded(
        f"{path}: pos_embed {list(table.shape)} is no sine-cosine table for clips of {num_frames} frames of "
        f"{img_size} pixels: give img_size= and num_frames= of the training"
    )


def predictor_arguments(path: Path, state: State, num_heads: int | None, rotary: bool) -> dict[str, Any]:
    """Constructor arguments of the Predictor that these tensors fit, beside the encoder."""
    width = tensor_of(path, "predictor", state, "predictor_embed.weight", 2).shape[0]
    hidden = tensor_of(path, "predictor", state, "predictor_blocks.0.mlp.fc1.weight", 2).shape[0]
    if num_heads is None and rotary and width == 384:
        num_heads = 12  # V-JEPA 2; elsewhere as many as the encoder has
    return {
        "embed_dim": width,
        "depth": depth_of(state, "predictor_blocks"),
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio(hidden, width),
        "num_mask_tokens": sum(name.startswith("mask_tokens.") for name in state) or None,
    }


def action_predictor_arguments(path: Path, state: State, num_heads: int | None) -> dict[str, Any]:
    """Constructor arguments of the ActionPredictor that these tensors fit, beside the encoder."""
    width = tensor_of(path, "predictor", state, "predictor_embed.weight", 2).shape[0]
    hidden = tensor_of(path, "predictor", state, "predictor_blocks.0.mlp.fc1.weight", 2).shape[0]
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "depth": depth_of(state, "predictor_blocks"),
        "num_heads": num_heads or heads_of(path, width, {1024: 16}, "predictor_num_heads"),
        "mlp_ratio": mlp_ratio(hidden, width),
        "action_dim": tensor_of(path, "predictor", state, "action_encoder.weight", 2).shape[1],
    }
    for name in ("state", "extrinsics"):
        there = f"{name}_encoder.weight" in state
        shape = tensor_of(path, "predictor", state, f"{name}_encoder.weight", 2).shape if there else (0, None)
        sizes[f"{name}_dim"] = shape[1]
    return sizes


def tensor_of(path: Path, network: str, state: State, name: str, *dimensions: int) -> Tensor:
    """A tensor that must be there, with one of these numbers of dimensions and nothing empty."""
    if name not in state:
        raise DoesNotFit(f"{path}: {network} has no tensor {name}; is it a JEPA checkpoint?")
    shape = state[name].shape
    if len(shape) not in dimensions or 0 in shape:
        expected = " or ".join(str(count) for count in dimensions)
        raise DoesNotFit(
            f"{path}: {name} of {network} is {list(shape)}, expected {expected} dimensions, none of them 0"
        )
    return state[name]


def depth_of(state: State, blocks: str) -> int:
    """Number of blocks; if one in the middle is missing, that shows when the tensors are compared."""
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _options(what: str, of_export: str | None = None) -> str:
    """The options of the commands that give a hint."""
    return f"export, explore: --{of_export or what}; evaluate: --overrides.{what}; others: --model.overrides.{what}"


def heads_of(path: Path, embed_dim: int, published: dict[int, int], hint: str = "num_heads") -> int:
    """Attention heads by the width of the network.

    Raises:
        HintNeeded: If it is no published one.
    """
    if embed_dim not in published:
        raise HintNeeded(
            f"{path}: embed_dim {embed_dim} is no published size: give {hint}=, which no tensor shows "
            f"({_options(f'{hint} N')})"
        )
    return published[embed_dim]


def side_of(path: Path, tokens: int, patch_size: int) -> int:
    """Side in pixels of a square image with so many tokens.

    Raises:
        HintNeeded: If there is none.
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise HintNeeded(
            f"{path}: {tokens} positions are no square grid: give img_size=(height, width) "
            f"({_options('img_size [HEIGHT,WIDTH]', 'img_size HEIGHT WIDTH')})"
        )
    return side * patch_size

"""Tokens of frames on their grid, of any encoder, and pixels in the same shape to compare them with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.models.vision_transformer import Encoder

PIXELS = 4
"""Raw pixels of a patch are averaged to that many rows and columns."""


@torch.no_grad()
def frame_tokens(
    encoder: Encoder, frames: Float[Tensor, "batch t channels height width"], layer: int | None = None
) -> Float[Tensor, "batch steps h w dim"]:
    """Tokens of an image (T = 1), or of each frame or tubelet of a clip of any length.

    An encoder of images sees each frame alone. An encoder of clips sees an image as one tubelet, and a long sequence in
    pieces of its own length; the last piece overlaps the one before.

    Args:
        encoder: The encoder.
        frames: Normalised pixels.
        layer: The block whose tokens are wanted; None for the encoder's output.

    Raises:
        ValueError: If the encoder has no such block.
    """
    if layer is not None and not -encoder.depth <= layer < encoder.depth:
        raise ValueError(f"layer {layer}: {type(encoder).__name__} shows blocks 0 to {encoder.depth - 1}")
    if encoder.num_frames == 1 or frames.shape[1] == 1:
        maps = _maps(encoder, frames.flatten(0, 1), layer)  # (B T, 1, h, w, D)
        return maps.squeeze(1).unflatten(0, frames.shape[:2])
    if rest := -frames.shape[1] % encoder.tubelet_size:  # the last frame fills the last tubelet
        frames = torch.cat([frames, frames[:, -1:].expand(-1, rest, -1, -1, -1)], dim=1)
    pieces, length, done = [], encoder.num_frames, 0
    while done < frames.shape[1]:
        start = max(0, min(done, frames.shape[1] - length))
        clip = frames[:, start : start + length].transpose(1, 2)
        pieces.append(_maps(encoder, clip, layer)[:, (done - start) // encoder.tubelet_size :])
        done = start + length
    return torch.cat(pieces, dim=1)


def pixel_tokens(
    frames: Float[Tensor, "batch t channels height width"], grid: tuple[int, int]
) -> Float[Tensor, "batch t h w dim"]:
    """The pixels of each patch, averaged to 4 x 4, in place of a token."""
    height, width = grid
    small = F.adaptive_avg_pool2d(frames.flatten(0, 1), (PIXELS * height, PIXELS * width))
    boxes = small.unflatten(3, (width, PIXELS)).unflatten(2, (height, PIXELS))  # (B T, C, h, 4, w, 4)
    return boxes.permute(0, 2, 4, 1, 3, 5).flatten(3).unflatten(0, frames.shape[:2])


def _maps(encoder: Any, inputs: Tensor, layer: int | None) -> Float[Tensor, "batch steps h w dim"]:
    tokens = encoder(inputs) if layer is None else encoder(inputs, layers=layer)
    return tokens.unflatten(1, encoder.grid_of(inputs))

"""Small rotations and translations: drawn, coded for a network, inverted, and applied to images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

FREQUENCIES = (10, 4, 4)
"""Number of frequencies in the code of the angle, the horizontal shift and the vertical shift."""
CODE_DIM = 2 * sum(FREQUENCIES)
_GAMMA, _MIX = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


class Affine(NamedTuple):
    """A movement of the plane for each sample, ``x -> R(angle) x + shift``; x to the right, y down.

    Attributes:
        angle: Radians, clockwise on the screen, (B,).
        shift: To the right and down, in lengths of the shorter side of the input, (B, 2).
    """

    angle: Float[Tensor, " batch"]
    shift: Float[Tensor, "batch 2"]

    def __call__(self, points: Float[Tensor, "batch *k 2"]) -> Float[Tensor, "batch *k 2"]:
        """Where points go, (B, ..., 2)."""
        shape = (-1, *[1] * (points.ndim - 2))
        cos, sin = self.angle.cos().view(shape), self.angle.sin().view(shape)
        x, y = points.unbind(-1)
        turned = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
        return turned + self.shift.view(*shape, 2)

    def inverse(self) -> Affine:
        """The movement back: ``x -> R(-angle) (x - shift)``."""
        back = Affine(-self.angle, torch.zeros_like(self.shift))
        return Affine(-self.angle, -back(self.shift))

    def where(self, chosen: Tensor, other: Affine) -> Affine:
        """This movement for the chosen samples (B,), the other one for the rest."""
        return Affine(
            torch.where(chosen, self.angle, other.angle),
            torch.where(chosen.unsqueeze(1), self.shift, other.shift),
        )


# ---------------------------------------------------------------------- the code


def affine_code(affine: Affine) -> Float[Tensor, "batch code"]:
    """The Fourier features of the three numbers of a movement, (B, 36).

    ``[sin(2^k pi p) for k < L] + [cos(2^k pi p) for k < L]`` (NeRF, Mildenhall et al. 2020, equation 4), the angle
    as p with L = 10, then the shifts to the right and down with L = 4. Numbers between -1 and 1 have different codes.
    """
    parts = []
    for value, count in zip((affine.angle, *affine.shift.unbind(1)), FREQUENCIES, strict=True):
        phase = math.pi * value.unsqueeze(1) * 2.0 ** torch.arange(count, device=value.device)
        parts += [phase.sin(), phase.cos()]
    return torch.cat(parts, dim=1)


# ---------------------------------------------------------------------- the pictures


def seen_through(
    images: Float[Tensor, "batch channels height width"], affine: Affine, size: tuple[int, int]
) -> Float[Tensor, "batch channels h w"]:
    """The central view of ``size`` pixels whose pixel x, counted from its centre, shows the image at ``affine(x)``.

    Bilinear; zeros (the mean colour of normalised images) where it looks beyond the border.
    """
    sides = images.shape[-2:]
    corner = _corner(sides, size)
    y, x = torch.meshgrid(
        *(torch.arange(count, device=images.device, dtype=torch.float32) - (count - 1) / 2 for count in size),
        indexing="ij",
    )
    points = torch.stack([x, y], dim=-1).expand(len(images), -1, -1, -1)  # (B, h, w, 2)
    points = affine(points / min(sides)) * min(sides)
    middle = [first + count / 2 for first, count in zip(corner, size, strict=True)]
    scale, offset = points.new_tensor([sides[1], sides[0]]), points.new_tensor(middle[::-1])
    grid = 2.0 * (points + offset) / scale - 1.0  # as grid_sample counts: -1 and 1 are the borders of the image
    return F.grid_sample(images.float(), grid, align_corners=False).to(images.dtype)


def centre(images: Float[Tensor, "batch channels height width"], size: tuple[int, int]) -> Tensor:
    """The central view of ``size`` pixels: what is seen through no movement at all."""
    top, left = _corner(images.shape[-2:], size)
    return images[:, :, top : top + size[0], left : left + size[1]]


def _corner(sides: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the first pixel of the central view."""
    return (sides[0] - size[0]) // 2, (sides[1] - size[1]) // 2


class Saccade(NamedTuple):
    """Two views of each image and the way between them.

    Attributes:
        first: (B, C, h, w).
        second: (B, C, h, w).
        movement: What is at x in the first view is at ``movement(x)`` in the second.
    """

    first: Tensor
    second: Tensor
    movement: Affine


@dataclass(frozen=True)
class AffineViews:
    """Two views of the middle of each image, one of them rotated and shifted a little.

    Drawn on the device, from (seed, step, index of the sample) only: the same after a resume and with any number of
    workers and processes, different for each sample.

    Args:
        max_rotation: Largest angle in degrees, in both directions.
        max_translation: Largest shift in both directions of each axis, over the difference of the sides of image and
            view: 0.9 of 200 - 128 pixels are 64.8. Up to 0.5 a view that is not turned stays inside the image.
        seed: Part of the key of every draw; null for the seed of the run (``seed_everything``).
    """

    max_rotation: float = 2.0
    max_translation: float = 0.9
    seed: int | None = None

    def __call__(self, images: Tensor, size: tuple[int, int], index: Int[Tensor, " batch"], step: int) -> Saccade:
        """Make the views.

        Args:
            images: (B, C, H, W), larger than the views.
            size: Height and width of a view.
            index: Position of each sample in its data set, (B,).
            step: Number of the optimizer step.

        Raises:
            ValueError: If the images are not larger than the views.
        """
        spare = [whole - part for whole, part in zip(images.shape[-2:], size, strict=True)]
        if min(spare) < 1:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels leave no room to move a view of "
                f"{size[0]}x{size[1]}: set --data.img_size to more than --model.encoder.img_size"
            )
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.seed is None else self.seed
        drawn = uniform(index, step, seed, 4)
        moves = 2.0 * drawn[:, :3] - 1.0
        range_ = self.max_translation * min(spare) / min(images.shape[-2:])
        view = Affine(moves[:, 0] * math.radians(self.max_rotation), moves[:, 1:] * range_)
        moved, still, swapped = seen_through(images, view, size), centre(images, size), drawn[:, 3] < 0.5
        chosen = swapped.view(-1, 1, 1, 1)
        first, second = torch.where(chosen, still, moved), torch.where(chosen, moved, still)
        return Saccade(first, second, view.inverse().where(swapped, view))


def uniform(index: Int[Tensor, " batch"], step: int, seed: int, count: int) -> Float[Tensor, "batch count"]:
    """Numbers from 0 to below 1 that follow from their arguments alone, the same on every device.

    The output function of SplitMix64 (Steele et al. 2014) on a key of seed, step, index and place: no state, and the
    host need not know the index.
    """
    place = torch.arange(count, device=index.device)
    key = torch.full((1, 1), _signed(seed), device=index.device, dtype=torch.int64)
    for part in (torch.full_like(key, step), index.unsqueeze(1).long(), place.unsqueeze(0)):
        key = _mixed(key + _signed(_GAMMA) + part)
    return ((key >> 40) & 0xFFFFFF).float() / 2**24


def _mixed(key: Tensor) -> Tensor:
    for shift, factor in _MIX:
        key = (key ^ ((key >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return key


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned number of 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value

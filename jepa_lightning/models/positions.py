"""Where a token is: fixed sine-cosine tables that are added, and rotary positions that attention applies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Grid = tuple[int, int, int]
"""Tokens along time, height and width; time is 1 for images."""


class Rotation(NamedTuple):
    """Factors that attention multiplies its queries and keys with.

    Attributes:
        cos: (B or 1, 1, N, head_dim), float32; 1 where a channel is not rotated.
        sin: The same shape; 0 where a channel is not rotated.
    """

    cos: Float[Tensor, "batch 1 tokens head_dim"]
    sin: Float[Tensor, "batch 1 tokens head_dim"]


class Positions(ABC):
    """How a network learns where its tokens are; one object serves encoder and predictor."""

    @abstractmethod
    def table(self, grid: Grid, dim: int) -> Float[Tensor, "1 tokens dim"] | None:
        """What is added to the tokens of a whole grid, or None."""

    def fit(self, table: Float[Tensor, "1 tokens dim"], grid: Grid, wanted: Grid) -> Float[Tensor, "1 wanted dim"]:
        """The table of ``grid`` resampled to another grid; itself if equal."""
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def rotation(self, index: Int[Tensor, "batch tokens"], grid: Grid, head_dim: int) -> Rotation | None:
        """How the queries and keys of the tokens at ``index`` are rotated, or None."""
        return None


@dataclass(frozen=True)
class SinCos2D(Positions):
    """Image positions: half of the channels for the column, half for the row.

    Args:
        column_first: Give the column the first half (I-JEPA); otherwise the row has it (V-JEPA's image encoders).
    """

    column_first: bool = True

    def table(self, grid: Grid, dim: int) -> Float[Tensor, "1 tokens dim"]:
        """See sincos_2d; a grid with several steps in time is an error."""
        if grid[0] != 1:
            raise ValueError(f"SinCos2D has no time, but the grid is {grid}: use positions SinCos3D or RoPE for video")
        return sincos_2d(*grid[1:], dim, self.column_first)

    def fit(self, table: Float[Tensor, "1 tokens dim"], grid: Grid, wanted: Grid) -> Float[Tensor, "1 wanted dim"]:
        """Bicubic."""
        return fit_positions(table, grid, wanted)


@dataclass(frozen=True)
class SinCos3D(Positions):
    """Video positions of V-JEPA: time, height and width one after the other.

    Args:
        uniform_power: Give the three coordinates the same number of channels (every released V-JEPA); otherwise time
            gets half of them and height and width a quarter each.
        slice_shorter: A shorter clip of the same size has the first positions in time, as in the code of V-JEPA 2;
            otherwise, as in V-JEPA's, those of all times, resampled: as if it were as long and faster.
    """

    uniform_power: bool = True
    slice_shorter: bool = False

    def table(self, grid: Grid, dim: int) -> Float[Tensor, "1 tokens dim"]:
        """See sincos_3d."""
        return sincos_3d(grid, dim, self.uniform_power)

    def fit(self, table: Float[Tensor, "1 tokens dim"], grid: Grid, wanted: Grid) -> Float[Tensor, "1 wanted dim"]:
        """Trilinear; bicubic between image grids; the first in time with ``slice_shorter``."""
        if wanted == grid:
            return table
        if self.slice_shorter and wanted[0] < grid[0] and wanted[1:] == grid[1:]:
            return table[:, : wanted[0] * wanted[1] * wanted[2]]
        if grid[0] == wanted[0] == 1:
            return fit_positions(table, grid, wanted)
        volume = table.reshape(1, *grid, -1).permute(0, 4, 1, 2, 3).float()
        # By size: the scale factors of the official code give the same numbers, but can round to one token less.
        resampled = F.interpolate(volume, size=wanted, mode="trilinear", align_corners=False)
        return resampled.flatten(2).transpose(1, 2).to(table.dtype)


@dataclass(frozen=True)
class RoPE(Positions):
    """Rotary positions in three dimensions (V-JEPA 2 section 2.1): nothing is added, attention rotates.

    A third of each head's channels, rounded down to an even number, turns with time, a third with height, a third with
    width; what remains at the end of the head is left alone. Works for any size and length.

    Args:
        layout: Which angle belongs to which channel. ``interleaved``: the two channels of a pair share theirs, so that
            attention depends on distances only (V-JEPA 2.1). ``tiled``: the angles are listed twice in a row while
            pairs are adjacent channels, which is no rotation; the released weights of V-JEPA 2 need it.
        theta: Base of the frequencies.
    """

    layout: Literal["interleaved", "tiled"] = "interleaved"
    theta: float = 10000.0

    def table(self, grid: Grid, dim: int) -> None:
        """Nothing is added."""
        return

    def rotation(self, index: Int[Tensor, "batch tokens"], grid: Grid, head_dim: int) -> Rotation:
        """Angles of the tokens at ``index``, see ``at``."""
        _, height, width = grid
        return self.at((index // (height * width), index % (height * width) // width, index % width), head_dim)

    def at(self, places: tuple[Tensor, Tensor, Tensor], head_dim: int) -> Rotation:
        """Angles of tokens at coordinates, in float32 also under autocast: a bfloat16 angle is off by whole turns.

        Args:
            places: Time, height and width of each token, (B, N) each, also between the places of the grid. A coordinate
                of 0 rotates nothing.
            head_dim: Channels of a head.

        Raises:
            ValueError: If a head is too narrow to rotate two channels for each coordinate, or has an odd one.
        """
        if head_dim < 6 or head_dim % 2:
            raise ValueError(
                f"RoPE needs an even number of channels for each head, at least 6, got {head_dim}: set num_heads"
            )
        angles = [self.angles(place, 2 * (head_dim // 3 // 2)) for place in places]
        angle = torch.cat(angles, dim=-1)
        angle = F.pad(angle, (0, head_dim - angle.shape[-1])).unsqueeze(1)  # (B, 1, N, head_dim)
        return Rotation(angle.cos(), angle.sin())

    def angles(self, place: Tensor, channels: int) -> Float[Tensor, "*place channels"]:
        """``place * theta^(-i / (channels / 2))``, each frequency for two channels."""
        exponent = torch.arange(channels // 2, device=place.device, dtype=torch.float32) / (channels / 2)
        angle = place.float().unsqueeze(-1) * self.theta**-exponent
        return torch.cat([angle, angle], dim=-1) if self.layout == "tiled" else angle.repeat_interleave(2, dim=-1)


def rotate(x: Float[Tensor, "batch heads tokens head_dim"], rotation: Rotation) -> Tensor:
    """``x cos + J x sin`` where J turns each pair of adjacent channels (a, b) into (-b, a); keeps the dtype."""
    return (x * rotation.cos + _turned(x) * rotation.sin).to(x.dtype)


def rotate_back(x: Float[Tensor, "batch heads tokens head_dim"], rotation: Rotation) -> Tensor:
    """The transpose of ``rotate`` as a matrix, which gradients pass through: its inverse where it is a rotation."""
    return (x * rotation.cos - _turned(x * rotation.sin)).to(x.dtype)


def _turned(x: Tensor) -> Tensor:
    """J x: each pair of adjacent channels (a, b) as (-b, a)."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)


def sincos_1d(positions: Tensor, dim: int) -> Float[Tensor, "positions dim"]:
    """``[sin(p w), cos(p w)]`` with ``w_k = 10000^(-k / (dim / 2))``, in float64."""
    frequency = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.outer(positions.double(), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(height: int, width: int, dim: int, column_first: bool = True) -> Float[Tensor, "1 tokens dim"]:
    """Positions of a height x width grid in raster order, half of the channels for each coordinate.

    Args:
        height: Rows.
        width: Columns.
        dim: Channels.
        column_first: Give the column the first half (I-JEPA); otherwise the row has it (V-JEPA on images).

    Raises:
        ValueError: If ``dim`` is not a multiple of 4 (sine and cosine of two coordinates).
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a dimension divisible by 4, got {dim}")
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    first, second = (columns, rows) if column_first else (rows, columns)
    halves = [sincos_1d(first.flatten(), dim // 2), sincos_1d(second.flatten(), dim // 2)]
    return torch.cat(halves, dim=1).float().unsqueeze(0)


def sincos_3d(grid: Grid, dim: int, uniform_power: bool = True) -> Float[Tensor, "1 tokens dim"]:
    """Positions of a (time, height, width) grid in raster order: [time, height, width] along the channels.

    With ``uniform_power`` each coordinate has 2 ceil(dim / 6) channels and what is too much is cut off at the end.

    Raises:
        ValueError: If the channels cannot be shared: ``dim`` must be even, without ``uniform_power`` a multiple of 8.
    """
    if dim % (2 if uniform_power else 8):
        raise ValueError(f"3-D sine-cosine positions need a dimension divisible by 8 (uniform_power: 2), got {dim}")
    widths = [2 * -(-dim // 6)] * 3 if uniform_power else [dim // 2, dim // 4, dim // 4]
    places = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    parts = [sincos_1d(place.flatten(), width) for place, width in zip(places, widths, strict=True)]
    return torch.cat(parts, dim=1)[:, :dim].float().unsqueeze(0)


def fit_positions(table: Float[Tensor, "1 tokens dim"], grid: Grid, wanted: Grid) -> Float[Tensor, "1 wanted dim"]:
    """The position table of an image ``grid`` resampled (bicubic) to the grid of another input size; itself if equal.

    Interpolating keeps the coordinates inside the range seen in training, as Hugging Face and timm do;
    the official I-JEPA code crashes on every size but its own.
    """
    if wanted == grid:
        return table
    picture = table.reshape(1, *grid[1:], -1).permute(0, 3, 1, 2).float()
    resampled = F.interpolate(picture, size=wanted[1:], mode="bicubic", align_corners=False)
    return resampled.flatten(2).transpose(1, 2).to(table.dtype)

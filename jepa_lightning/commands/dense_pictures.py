"""Pictures of dense predictions beside their images and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from jepa_lightning.data.dense_folders import voc_colours

SIDE, TITLE, GAP = 128, 16, 4
"""Pixels of the longer side of a picture, of the titles, and between pictures."""


class Row(NamedTuple):
    """An image, its labels, and those that each encoder found."""

    image: UInt8[Tensor, "3 h w"]
    truth: Tensor
    predicted: Sequence[Tensor]


class Match(NamedTuple):
    """Two pictures, points of the first, where they are in the other, and where each encoder found them."""

    one: UInt8[Tensor, "3 h w"]
    other: UInt8[Tensor, "3 h w"]
    points: Float[Tensor, "k 2"]
    truth: Float[Tensor, "k 2"]
    found: Sequence[Tensor]


class Strip(NamedTuple):
    """Frames, their objects, and those that each encoder carried there."""

    frames: UInt8[Tensor, "t 3 h w"]
    truth: Tensor
    carried: Sequence[Tensor]


def classes(rows: Sequence[Row], names: Sequence[str]) -> Image.Image:
    """Classes in the colours of VOC."""
    cells = [[_shown(row.image), *(_coloured(labels) for labels in (row.truth, *row.predicted))] for row in rows]
    return _sheet(["image", "truth", *names], cells)


def depths(rows: Sequence[Row], names: Sequence[str], limits: tuple[float, float]) -> Image.Image:
    """Near is bright, far dark."""
    low, high = limits
    cells = []
    for row in rows:
        grey = [255 * (1 - ((d.cpu() - low) / (high - low)).clamp(0, 1)) for d in (row.truth, *row.predicted)]
        cells.append([_shown(row.image), *(_shown(g.byte()[None].expand(3, -1, -1)) for g in grey)])
    return _sheet(["image", "truth", *names], cells)


def matches(rows: Sequence[Match], names: Sequence[str]) -> Image.Image:
    """Points have the same colour in every picture."""
    cells = []
    for row in rows:
        size = row.one.shape[-2:]
        shown = [_dotted(row.one, row.points, size), _dotted(row.other, row.truth, size)]
        cells.append([*shown, *(_dotted(row.other, points, size) for points in row.found)])
    return _sheet(["points", "truth", *names], cells)


def strips(rows: Sequence[Strip], names: Sequence[str]) -> Image.Image:
    """One line for the truth and one for each encoder, from left to right in time."""
    cells, titles = [], []
    for row in rows:
        chosen = torch.linspace(0, len(row.frames) - 1, min(8, len(row.frames))).round().long().tolist()
        for name, labels in zip(["truth", *names], [row.truth, *row.carried], strict=True):
            cells.append([_over(row.frames[t], labels[t]) for t in chosen])
            titles.append(name)
    return _sheet([], cells, titles)


def _sheet(columns: Sequence[str], cells: Sequence[Sequence[Image.Image]], lines: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows, with titles above the columns or above each row."""
    width = max(len(row) for row in cells) * (SIDE + GAP)
    heights = [max(cell.height for cell in row) + GAP + TITLE * bool(lines) for row in cells]
    sheet = Image.new("RGB", (width, sum(heights) + TITLE * bool(columns)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(columns):
        draw.text((number * (SIDE + GAP) + 2, 2), title, fill="black")
    top = TITLE * bool(columns)
    for number, (row, height) in enumerate(zip(cells, heights, strict=True)):
        if lines:
            draw.text((2, top + 2), lines[number], fill="black")
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * (SIDE + GAP), top + TITLE * bool(lines)))
        top += height
    return sheet


def _shown(image: UInt8[Tensor, "3 h w"]) -> Image.Image:
    picture = to_pil_image(image.cpu())
    scale = SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)


def _palette(labels: Tensor) -> UInt8[Tensor, "3 h w"]:
    """Colours of classes; pixels that do not count are white, as in VOC nearly."""
    colours = torch.from_numpy(voc_colours()).byte()
    found = colours[labels.cpu().long() % 256]
    found[labels.cpu() < 0] = 255
    return found.permute(2, 0, 1)


def _coloured(labels: Tensor) -> Image.Image:
    return _shown(_palette(labels))


def _over(frame: UInt8[Tensor, "3 h w"], labels: Tensor) -> Image.Image:
    """Objects in colour over a frame."""
    colours = F.interpolate(_palette(labels)[None].float(), size=frame.shape[-2:], mode="nearest")[0]
    inside = F.interpolate(labels[None, None].float().cpu(), size=frame.shape[-2:], mode="nearest")[0] > 0
    return _shown(torch.where(inside, 0.4 * frame + 0.6 * colours, 0.7 * frame).byte())


def _dotted(image: UInt8[Tensor, "3 h w"], points: Float[Tensor, "k 2"], size: Sequence[int]) -> Image.Image:
    picture = _shown(image)
    draw, scale = ImageDraw.Draw(picture), SIDE / max(size)
    for number, (x, y) in enumerate((points * scale).tolist()):
        colour = tuple(voc_colours()[number + 1].tolist())
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour, outline="white")
    return picture

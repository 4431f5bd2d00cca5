"""Tensors to figures: frames side by side, maps of patches over them, patches that can be clicked."""

from __future__ import annotations

import base64
import io
from textwrap import wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from jepa_lightning.explore.subject import Pixels
from jepa_lightning.masking import Grid

SIDE = 280
"""Height of a picture in screen pixels."""
LONGEST = 540
"""Greatest width of a picture, so that two clips with colour bars fit side by side on a small screen."""


def strip(pixels: Pixels, steps: int) -> UInt8[Tensor, "height length 3"]:
    """One frame for each step in time, side by side."""
    frames = pixels[:, :: pixels.shape[1] // steps]
    return torch.cat(list(frames.unbind(1)), dim=2).permute(1, 2, 0).contiguous()


def mosaic(patches: UInt8[Tensor, "tokens 3 side side"], grid: Grid) -> UInt8[Tensor, "height width 3"]:
    """Patches in raster order to a strip."""
    steps, rows, columns = grid
    side = patches.shape[-1]
    boxes = patches.reshape(steps, rows, columns, 3, side, side)
    return boxes.permute(1, 4, 0, 2, 5, 3).reshape(rows * side, steps * columns * side, 3)


def as_strip(values: Float[Tensor, " tokens"], grid: Grid) -> Float[Tensor, "rows width"]:
    """A number for each token, laid out as the frames are."""
    steps, rows, columns = grid
    return values.reshape(steps, rows, columns).permute(1, 0, 2).reshape(rows, steps * columns)


def png(picture: UInt8[Tensor, "height width 3"]) -> bytes:
    """Encode as PNG; small pictures are enlarged, so that browsers do not blur their patches."""
    image = Image.fromarray(np.ascontiguousarray(picture.numpy()))
    scale = max(1, -(-224 // image.height))
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def url(picture: UInt8[Tensor, "height width 3"]) -> str:
    """A data URL, as the source of an image on a page."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def figure(
    title: str,
    picture: UInt8[Tensor, "height width 3"],
    grid: Grid,
    values: Float[Tensor, " tokens"] | None = None,
    opacity: float = 0.6,
    marked: list[int] | None = None,
    select: bool = False,
) -> go.Figure:
    """A picture whose patches can be clicked.

    Args:
        title: Above it.
        picture: Frames side by side.
        grid: Tokens along time, height and width.
        values: A number for each token, shown as colours over the picture.
        opacity: Of these colours.
        marked: Tokens with a frame around them.
        select: Dragging draws a box that selects tokens, instead of zooming.
    """
    steps, rows, columns = grid
    width = steps * columns
    side = min(SIDE, LONGEST * rows // width)
    result = go.Figure()
    if values is not None:
        z = as_strip(values, grid).numpy()
        result.add_heatmap(
            z=z, x0=0.5, y0=0.5, dx=1, dy=1, opacity=opacity, colorscale="Turbo", hoverinfo="skip",
            colorbar={"thickness": 8, "tickfont": {"size": 9}},
        )  # fmt: skip
    result.add_scatter(**_points(grid, values))
    result.add_layout_image(
        source=url(picture), x=0, y=0, sizex=width, sizey=rows, xref="x", yref="y", xanchor="left", yanchor="top",
        sizing="stretch", layer="below",
    )  # fmt: skip
    for token in marked or []:
        x, y = _place(token, grid)
        result.add_shape(type="rect", x0=x, x1=x + 1, y0=y, y1=y + 1, line={"color": "white", "width": 2})
    hidden = {"visible": False, "constrain": "domain"}
    result.update_layout(
        title={"text": title, "font": {"size": 13}, "x": 0.02, "y": 0.97},
        margin={"l": 4, "r": 4 if values is None else 60, "t": 30, "b": 4},  # room for the numbers of the bar
        height=side + 34,
        width=round(side * width / rows) + (70 if values is not None else 8),
        xaxis={**hidden, "range": [0, width]},
        yaxis={**hidden, "range": [rows, 0], "scaleanchor": "x"},
        dragmode="select" if select else False,
        showlegend=False,
        hoverdistance=-1,
        clickmode="event",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return result


def _place(token: int, grid: Grid) -> tuple[int, int]:
    """Column and row of a token in the strip."""
    _, rows, columns = grid
    step, rest = divmod(token, rows * columns)
    return step * columns + rest % columns, rest // columns


def _points(grid: Grid, values: Tensor | None) -> dict[str, Any]:
    """Invisible points in the middle of every patch, which a click or a box selects."""
    count = grid[0] * grid[1] * grid[2]
    places = np.array([_place(token, grid) for token in range(count)]) + 0.5
    unseen = {"marker": {"opacity": 0}}
    shown = [""] * count if values is None else [f"<br>{value:.3g}" for value in values.tolist()]
    return {
        "x": places[:, 0], "y": places[:, 1], "mode": "markers", "marker": {"size": 14, "opacity": 0},
        "selected": unseen, "unselected": unseen, "customdata": list(range(count)), "text": shown,
        "hovertemplate": "patch %{customdata}%{text}<extra></extra>",
    }  # fmt: skip


def message(text: str) -> go.Figure:
    """Text in place of a picture; an empty text takes up no room."""
    result = go.Figure()
    result.add_annotation(text="<br>".join(wrap(text, 52)), showarrow=False, font={"size": 12})
    axis = {"visible": False}
    result.update_layout(
        height=SIDE if text else 10, width=SIDE + 120 if text else 10, xaxis=axis, yaxis=axis,
        margin={"l": 4, "r": 4, "t": 4, "b": 4} if text else {"l": 0, "r": 0, "t": 0, "b": 0},
        plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
    return result


def bars(title: str, values: Float[Tensor, " heads"], chosen: int | None) -> go.Figure:
    """A bar for each attention head."""
    colours = ["#d62728" if head == chosen else "#1f77b4" for head in range(len(values))]
    result = go.Figure(go.Bar(x=list(range(len(values))), y=values.numpy(), marker_color=colours))
    result.update_layout(
        title={"text": title, "font": {"size": 13}, "x": 0.02, "y": 0.97}, height=SIDE + 34, width=SIDE + 60,
        margin={"l": 34, "r": 4, "t": 30, "b": 30}, xaxis={"title": "head", "dtick": 1},
    )  # fmt: skip
    return result


def scatter(places: np.ndarray, labels: list[str], names: list[str]) -> go.Figure:
    """Points on a plane, a colour for each label; hovering shows the sample."""
    result = go.Figure()
    for label in sorted(set(labels)):
        chosen = [i for i, own in enumerate(labels) if own == label]
        result.add_scatter(
            x=places[chosen, 0], y=places[chosen, 1], mode="markers", name=label, customdata=chosen,
            text=[names[i] for i in chosen], hoverinfo="none", marker={"size": 8},
        )  # fmt: skip
    result.update_layout(
        height=640, width=900, margin={"l": 4, "r": 4, "t": 10, "b": 4}, xaxis={"visible": False},
        yaxis={"visible": False}, legend={"title": "label"}, hovermode="closest",
    )  # fmt: skip
    return result

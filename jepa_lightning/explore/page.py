"""The page: layout and callbacks (Dash; nothing is loaded from a network)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import plotly.graph_objects as go
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate
from flask import abort, request

from jepa_lightning.explore import figures
from jepa_lightning.explore.answers import Answers

Result = TypeVar("Result")
MAX_FILE = 200 * 2**20
"""Bytes of a file that is dropped in."""
LOOK = ("input", "attends", "attended", "perplexity", "pca", "similarity", "followed")
EXPECT = ("surprise", "expected", "seen")
ROW = {"display": "flex", "flexWrap": "wrap", "gap": "6px", "alignItems": "flex-start"}
FIELD = {"minWidth": "180px", "flex": "1"}
QUIET: Any = {"displayModeBar": False}


def page(answers: Answers, title: str, hosts: set[str] | None = None) -> Dash:
    """The application, to be run by a server.

    Args:
        answers: Makes the figures.
        title: One line about the checkpoint.
        hosts: Names under which it may be reached; None for any. A page of somebody else that is open in the same
            browser could otherwise read this one by way of a name that it makes point here.
    """
    app = Dash(__name__, title="jepa explore", update_title="jepa explore ...", serve_locally=True)
    app.layout = html.Div(
        [
            html.H3(["jepa explore ", html.Small(title, style={"color": "#666", "fontWeight": "normal"})]),
            _controls(answers),
            html.Div(id="note", role="status", style={"color": "#b00020", "minHeight": "1.4em"}),
            dcc.Tabs([_look_tab(), _expect_tab(), _map_tab()], id="tabs", value="look"),
            dcc.Store(id="patch", data=0),
            dcc.Store(id="hidden", data=[]),
        ],
        style={"fontFamily": "system-ui, sans-serif", "margin": "8px 16px"},
    )
    _choosing(app, answers)
    _looking(app, answers)
    _hiding(app, answers)
    _expecting(app, answers)
    _mapping(app, answers)
    if hosts is not None:
        app.server.before_request(partial(_only_here, hosts))
    return app


def _only_here(hosts: set[str]) -> None:
    if request.host.rsplit(":", 1)[0] not in hosts:
        abort(403)


# ---------------------------------------------------------------------- layout


def _controls(answers: Answers) -> html.Div:
    depth = answers.subject.depth
    heads = [{"label": "mean of the heads", "value": -1}]
    heads += [{"label": f"head {head}", "value": head} for head in range(answers.subject.encoder.num_heads)]
    slider = dcc.Slider(0, depth - 1, 1, value=depth - 1, id="layer", marks={0: "0", depth - 1: str(depth - 1)})
    drop = dcc.Upload(
        "drop an image or a video here, or click", id="file", max_size=MAX_FILE,
        style={"border": "1px dashed #888", "padding": "7px", "textAlign": "center", "cursor": "pointer"},
    )  # fmt: skip
    fields = [
        ("sample", dcc.Dropdown(_options(answers), 0, id="item", clearable=False)),
        ("your own", drop),
        ("layer", slider),
        ("attention head", dcc.Dropdown(heads, -1, id="head", clearable=False)),
        ("foreground: first component", dcc.Slider(-0.9, 0.9, 0.1, value=0, id="threshold", marks={0: "all"})),
        ("opacity of the colours", dcc.Slider(0, 1, 0.1, value=0.6, id="opacity", marks={0: "0", 1: "1"})),
    ]
    return html.Div(
        [html.Div([html.Label(name), part], style=FIELD) for name, part in fields], style={**ROW, "gap": "16px"}
    )


def _options(answers: Answers) -> list[dict[str, Any]]:
    return [{"label": item.title(), "value": number} for number, item in enumerate(answers.items)]


def _graphs(names: tuple[str, ...]) -> html.Div:
    return html.Div([dcc.Graph(id=name, figure=figures.message(""), config=QUIET) for name in names], style=ROW)


def _help(text: str) -> html.Div:
    return html.Div(text, style={"color": "#666", "fontSize": "14px", "padding": "8px 0"})


def _look_tab() -> dcc.Tab:
    text = (
        "Click a patch in any picture: colours show what it attends to, what attends to it, and how similar the "
        "features of all patches are to its own. Perplexity: over how many patches a head spreads its attention. "
        "Followed: where the patch goes in later frames, by the most similar features. Foreground: hide patches whose "
        "first principal component is low, or high."
    )
    return dcc.Tab([_help(text), _graphs(LOOK)], label="attention and features", value="look")


def _expect_tab() -> dcc.Tab:
    text = (
        "Hide patches: the predictor says from the others what features it expects there. Surprise: how far these are "
        "from what the target encoder sees; features are shown as those patches of other samples that are most similar."
    )
    buttons = [html.Button("sample a mask", id="sample"), html.Button("show everything", id="clear")]
    return dcc.Tab(
        [
            _help(text),
            html.Div(buttons, style=ROW),
            _graphs(("mask", *EXPECT)),
            html.Div(id="says"),
            html.Div(id="near", style={**ROW, "padding": "8px 0"}),
        ],
        label="what is expected",
        value="expect",
    )


def _map_tab() -> dcc.Tab:
    text = (
        "A point for each sample, near others whose averaged features are alike (UMAP), in the colour of its label. "
        "The first time takes half a minute; hover over a point to see the sample."
    )
    graph = dcc.Graph(id="map", config=QUIET, clear_on_unhover=True, figure=figures.message("not drawn yet"))
    # The tooltip is placed within the box that both stand in.
    points = html.Div([dcc.Loading(graph), dcc.Tooltip(id="thumbnail")], style={"position": "relative"})
    return dcc.Tab(
        [_help(text), html.Button("draw the map of all samples", id="draw"), points],
        label="map of the samples",
        value="map",
    )


# ---------------------------------------------------------------------- callbacks


def _said(ask: Callable[[], Result]) -> tuple[Result | None, str]:
    """The answer, or why there is none: an error is for the person at the page and must not end it."""
    try:
        return ask(), ""
    except Exception as error:
        return None, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _choosing(app: Dash, answers: Answers) -> None:
    @app.callback(
        Output("item", "options"), Output("item", "value"), Output("note", "children"),
        Input("file", "contents"), State("file", "filename"), prevent_initial_call=True,
    )  # fmt: skip
    def dropped(contents: str | None, name: str | None) -> tuple[Any, Any, str]:
        if contents is None:
            raise PreventUpdate

        def read() -> int:
            try:
                content = base64.b64decode(contents.partition(",")[2], validate=True)
            except binascii.Error as error:
                raise ValueError(f"{name} did not arrive whole: drop it again") from error
            return answers.drop(name or "file", content)

        number, why = _said(read)
        return (no_update, no_update, why) if number is None else (_options(answers), number, "")


def _looking(app: Dash, answers: Answers) -> None:
    clicks = [Input(name, "clickData") for name in LOOK if name != "perplexity"]

    @app.callback(Output("patch", "data"), *clicks, prevent_initial_call=True)
    def clicked(*_: Any) -> int:
        return _token(ctx.triggered[0]["value"])

    @app.callback(
        *[Output(name, "figure") for name in LOOK],
        Input("item", "value"), Input("patch", "data"), Input("layer", "value"), Input("head", "value"),
        Input("opacity", "value"), Input("threshold", "value"),
    )  # fmt: skip
    def look(item: int, patch: int, layer: int, head: int, opacity: float, threshold: float) -> list[go.Figure]:
        shown, why = _said(lambda: answers.look(item, patch, layer, None if head < 0 else head, opacity, threshold))
        return [figures.message(why)] * len(LOOK) if shown is None else shown


def _token(click: dict[str, Any] | None) -> int:
    if not click or "customdata" not in click["points"][0]:
        raise PreventUpdate
    return int(click["points"][0]["customdata"])


def _hiding(app: Dash, answers: Answers) -> None:
    @app.callback(
        Output("hidden", "data"), Output("note", "children", allow_duplicate=True),
        Input("mask", "selectedData"), Input("mask", "clickData"), Input("sample", "n_clicks"),
        Input("clear", "n_clicks"), Input("item", "value"), State("hidden", "data"), prevent_initial_call=True,
    )  # fmt: skip
    def hide(box: Any, click: Any, _sample: Any, _clear: Any, item: int, hidden: list[int]) -> tuple[Any, str]:
        asked = set(ctx.triggered_prop_ids)
        if "sample.n_clicks" in asked:
            drawn, why = _said(lambda: answers.sample_mask(item))
            return (no_update, why) if drawn is None else (drawn, "")
        if "mask.clickData" in asked and click:
            return sorted(set(hidden) ^ {_token(click)}), ""
        if "mask.selectedData" in asked:
            if not box or not box.get("points"):
                raise PreventUpdate
            return sorted(set(hidden) | {int(point["customdata"]) for point in box["points"]}), ""
        return [], ""

    @app.callback(Output("mask", "figure"), Input("hidden", "data"), Input("item", "value"))
    def draw(hidden: list[int], item: int) -> go.Figure:
        shown, why = _said(lambda: answers.hidden_picture(item, hidden))
        return figures.message(why) if shown is None else shown


def _expecting(app: Dash, answers: Answers) -> None:
    asked = Input("hidden", "data"), State("item", "value")

    @app.callback(Output("surprise", "figure"), Output("says", "children"), *asked)
    def surprise(hidden: list[int], item: int) -> list[Any]:
        found, why = _said(lambda: answers.surprise(item, hidden))
        return [figures.message(why), ""] if found is None else list(found)

    @app.callback(*[Output(name, "figure") for name in EXPECT[1:]], *asked)  # takes longer the first time
    def expect(hidden: list[int], item: int) -> list[go.Figure]:
        found, _ = _said(lambda: answers.expect(item, hidden))
        return [figures.message("")] * 2 if found is None else found

    @app.callback(
        Output("near", "children"),
        Input("surprise", "clickData"), Input("hidden", "data"), State("item", "value"), prevent_initial_call=True,
    )  # fmt: skip
    def near(click: Any, hidden: list[int], item: int) -> list[Any]:
        if "surprise.clickData" not in ctx.triggered_prop_ids:
            return []
        token = _token(click)
        found, why = _said(lambda: answers.neighbours(item, hidden, token))
        if not found:
            return [why or f"patch {token} was not hidden"]
        images = [html.Img(src=source, height=72, style={"imageRendering": "pixelated"}) for source in found]
        return [html.Span(f"most like what is expected at patch {token}:"), *images]


def _mapping(app: Dash, answers: Answers) -> None:
    @app.callback(Output("map", "figure"), Input("draw", "n_clicks"), prevent_initial_call=True)
    def draw(_: Any) -> go.Figure:
        shown, why = _said(answers.plane)
        return figures.message(why) if shown is None else shown

    @app.callback(
        Output("thumbnail", "show"),
        Output("thumbnail", "bbox"),
        Output("thumbnail", "children"),
        Input("map", "hoverData"),
    )
    def hover(data: Any) -> tuple[bool, Any, Any]:
        if not data or "customdata" not in data["points"][0]:
            return False, no_update, no_update
        point = data["points"][0]
        image = html.Img(src=answers.thumbnail(int(point["customdata"])), height=112)
        return True, point["bbox"], [image, html.Div(point.get("text", ""))]

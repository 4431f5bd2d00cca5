"""The frozen-encoder numbers of one encoder, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping

from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.probes import knn_top1, linear_top1
from jepa_lightning.metrics import rankme

Scores = dict[str, float]
TITLES = {"linear_top1": "linear probe top-1 (%)", "knn_top1": "k-NN top-1 (%)", "rankme": "RankMe"}


def score(train: Features, held_out: Features, k: int) -> Scores:
    """RankMe of the held-out features and, with two classes or more, linear and k-NN top-1."""
    scores = {"rankme": float(rankme(held_out.x))}
    train, held_out = train.labelled(), held_out.labelled()
    if len(train.y.unique()) > 1 and len(held_out.y):
        scores["linear_top1"] = linear_top1(train, held_out)
        scores["knn_top1"] = knn_top1(train, held_out, k)
    return scores


def table(columns: Mapping[str, Scores]) -> str:
    """Plain text, one column for each encoder."""
    names = [name for name in TITLES if any(name in scores for scores in columns.values())]
    head = ["", *columns]
    rows = [[TITLES[name], *[_shown(scores.get(name), name) for scores in columns.values()]] for name in names]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _shown(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if name.endswith("top1") else f"{value:.1f}"

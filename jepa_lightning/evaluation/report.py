"""The frozen-encoder numbers of one encoder, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.probes import knn_top1, linear_top1
from jepa_lightning.metrics import rankme

Scores = dict[str, float]
PROBES = ("linear_top1", "knn_top1")
TITLES = {"linear_top1": "linear probe top-1 (%)", "knn_top1": "k-NN top-1 (%)", "rankme": "RankMe"}


def score(train: Features, held_out: Features, k: int, label_names: Sequence[str] = ()) -> Scores:
    """RankMe of the held-out features and, with two classes or more, linear and k-NN top-1.

    With several labels, `linear_top1_NAME` of each and their mean as `linear_top1`, likewise for k-NN.
    """
    scores = {"rankme": float(rankme(held_out.x))}
    if not label_names:
        return scores | _accuracies(train, held_out, k)
    by_label = {
        name: _accuracies(train.task(number), held_out.task(number), k) for number, name in enumerate(label_names)
    }
    for probe in PROBES:
        values = [accuracies[probe] for accuracies in by_label.values() if probe in accuracies]
        if values:
            scores[probe] = sum(values) / len(values)
        scores |= {f"{probe}_{name}": found[probe] for name, found in by_label.items() if probe in found}
    return scores


def _accuracies(train: Features, held_out: Features, k: int) -> Scores:
    train, held_out = train.labelled(), held_out.labelled()
    if len(train.y.unique()) < 2 or not len(held_out.y):
        return {}
    return {"linear_top1": linear_top1(train, held_out), "knn_top1": knn_top1(train, held_out, k)}


def table(columns: Mapping[str, Scores]) -> str:
    """Plain text, one column for each encoder."""
    found = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    several = [probe for probe in PROBES if any(name.startswith(f"{probe}_") for name in found)]
    names = sorted(
        (n for n in found if n not in several), key=lambda n: [n.startswith(t) for t in TITLES], reverse=True
    )
    head = ["", *columns]
    rows = [[_title(name), *[_shown(scores.get(name), name) for scores in columns.values()]] for name in names]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _title(name: str) -> str:
    """``linear_top1_motion`` -> ``linear probe top-1, motion (%)``."""
    for probe, title in TITLES.items():
        if name.startswith(f"{probe}_"):
            return title.replace(" (%)", f", {name.removeprefix(f'{probe}_')} (%)")
    return TITLES[name]


def _shown(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if name.startswith(PROBES) else f"{value:.1f}"

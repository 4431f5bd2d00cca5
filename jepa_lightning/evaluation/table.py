"""The table of results, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jepa_lightning.evaluation.intervals import interval
from jepa_lightning.evaluation.results import KNN, LOGISTIC, RANKME, RMSE, Result

FIRST, LAST = ("raw pixels", "random initialisation"), ("trained",)
"""Encoders whose columns come first and last."""
COMPACT = {LOGISTIC: "linear probe", KNN: "k-NN"}
"""Row titles of the readouts in tables without intervals."""
SPLITS = {"val": "validation split", "test": "test split"}
DECIDED, LEFT_OUT = "top1_where_chosen", "left_out"
"""Entries of ``chosen`` that are no settings."""
Rows = list[list[str]]


def heading(results: Sequence[Result]) -> str:
    """Data set, split and n, one line for each that occurs: ``photos (Folder), validation split, n = 1,000``."""
    lines = []
    for place in dict.fromkeys(_place(result) for result in results):
        here = [result for result in results if _place(result) == place]
        line = f"{_named(here[0])}, n = {_counts({result.samples for result in here})}"
        learned = [result.fitted for result in here if result.fitted]
        lines.append(f"{line}; fitted on {max(learned):,} training samples" if learned else line)
    return "\n".join(lines)


def table(results: Sequence[Result], intervals: bool = True) -> Rows:
    """One row for each readout and label, one column for each encoder; the first row has the titles.

    Args:
        results: The results.
        intervals: ``41.9 [38.9, 45.0]``, in %, with 95 % intervals; otherwise ``41.9``, under the short titles that a
            running training has.
    """
    columns = sorted(dict.fromkeys(result.encoder for result in results), key=_order)
    protocols = list(dict.fromkeys(result.protocol for result in results))
    cells = {(*_row(result), result.encoder): _cell(result, intervals) for result in results}
    several = len({_place(result) for result in results}) > 1
    firsts = {_row(result): result for result in reversed(results)}
    rows = sorted(dict.fromkeys(_row(result) for result in results), key=lambda row: protocols.index(row[0]))
    titles = [_title(firsts[row], intervals) + f" ({_named(firsts[row])})" * several for row in rows]
    body = [[title, *(cells.get((*row, c), "-") for c in columns)] for title, row in zip(titles, rows, strict=True)]
    return [["", *columns], *body]


def settings(results: Sequence[Result], best: Sequence[Result] = ()) -> Rows:
    """One row for each choice of settings, with a column for each setting and for the top-1 of each label.

    Args:
        results: Results of alternatives, for example of all heads of a probe.
        best: The results of those that were chosen in validation.
    """
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for result in results:
        row = rows.setdefault(_choice(result), {"encoder": result.encoder, **_settings(result)})
        row[f"top-1 {result.label} (%)".replace("  ", " ")] = _cell(result, intervals=False)
    if len({result.encoder for result in results}) == 1:
        rows = {key: {name: cell for name, cell in row.items() if name != "encoder"} for key, row in rows.items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    chosen = {_choice(result) for result in best}
    head = [*names, "best in validation"] if best else names
    return [head] + [[*(row.get(n, "-") for n in names), *["yes" if k in chosen else ""] * bool(best)]
                     for k, row in rows.items()]  # fmt: skip


def choices(results: Sequence[Result]) -> Rows:
    """The chosen settings of each result and their accuracy in model selection; empty if nothing was chosen."""
    rows = []
    for result in results:
        if found := _settings(result):
            decided = f"{100 * result.chosen[DECIDED]:.1f}" if DECIDED in result.chosen else "-"
            words = ", ".join(f"{name} {value}" for name, value in found.items())
            rows.append([_title(result, True), result.encoder, words, decided])
    return [["protocol", "encoder", "settings", "top-1 where they were chosen (%)"], *rows] if rows else []


def about_intervals(results: Sequence[Result]) -> str:
    """Which intervals the table has, and why a value is missing."""
    sentences, measured = [], [result for result in results if result.protocol != RANKME]
    if samples := {result.samples for result in measured if result.bounds is not None}:
        sentences.append(f"One run: 95 % of 1,000 resamplings of the {_counts(samples)} samples.")
    if samples := {result.samples for result in measured if len(result.values) == 1 and result.bounds is None}:
        sentences.append(f"One run: Wilson's interval, for {_counts(samples)} samples.")
    if runs := {len(result.values) for result in results if len(result.values) > 1}:
        sentences.append(f"Several: Student's t over {_counts(runs)} draws or seeds.")
    missing = {f"{r.protocol}: {r.chosen[LEFT_OUT]}." for r in results if LEFT_OUT in r.chosen}
    return " ".join([*sentences, *sorted(missing)])


def plain(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table of Markdown; with ``numbers`` all columns but the first are aligned to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:" if numbers else "---"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _place(result: Result) -> tuple[str, str]:
    return result.data, result.split


def _named(result: Result) -> str:
    return f"{result.data}, {SPLITS.get(result.split, result.split)}"


def _row(result: Result) -> tuple[str, str, str, str]:
    return result.protocol, result.label, result.data, result.split


def _choice(result: Result) -> tuple[Any, ...]:
    return (result.encoder, *result.chosen.items())


def _order(encoder: str) -> int:
    return FIRST.index(encoder) if encoder in FIRST else len(FIRST) + (encoder in LAST)


def _title(result: Result, intervals: bool) -> str:
    name = result.protocol if intervals or result.protocol not in COMPACT else f"{COMPACT[result.protocol]} top-1"
    words = f"{name}, {result.label}" if result.label else name
    return words if intervals or result.protocol == RANKME else f"{words} (%)"


def _cell(result: Result, intervals: bool) -> str:
    if not result.values:
        return "-"
    scale, digits = result.scale, 3 if result.protocol == RMSE else 1
    unmeasured = (scale == 1 or not result.samples) and result.bounds is None
    if not intervals or (len(result.values) == 1 and unmeasured):
        return f"{scale * result.mean:.{digits}f}"
    found = interval(result.values, result.samples, result.bounds)
    low, high = max(0.0, found.low), found.high if scale == 1 else min(1.0, found.high)
    return f"{scale * found.mean:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def _settings(result: Result) -> dict[str, str]:
    chosen = {name: value for name, value in result.chosen.items() if name not in (DECIDED, LEFT_OUT)}
    return {n.replace("_", " "): f"{v:g}" if isinstance(v, float) else str(v) for n, v in chosen.items()}


def _counts(numbers: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(numbers))

"""`report.json` and `report.md`: every accuracy with its interval, how it was chosen, and where it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jepa_lightning.evaluation.intervals import interval
from jepa_lightning.evaluation.protocols import Result

ENCODERS = ("raw pixels", "random initialisation", "trained")
"""Columns that stand in this order wherever they occur."""
DECIDED = "top1_where_chosen"


class Report(NamedTuple):
    """What is written.

    Attributes:
        title: What was evaluated, one line.
        results: Every accuracy.
        protocol: How they were made, a sentence each.
        about: Commit, hardware, time and the like, by name.
        config: The configuration, YAML text.
    """

    title: str
    results: Sequence[Result]
    protocol: Sequence[str]
    about: Mapping[str, Any]
    config: str = ""

    def write(self, folder: Path) -> list[Path]:
        """Write `report.json` and `report.md`; the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "title": self.title,
            "results": [_as_json(result) for result in self.results],
            "protocol": list(self.protocol),
            "about": dict(self.about),
            "config": self.config,
        }
        files = {
            folder / "report.json": json.dumps(content, indent=2) + "\n",
            folder / "report.md": self.markdown(),
        }
        for path, text in files.items():
            path.write_text(text)
        return list(files)

    def markdown(self) -> str:
        """The page for people."""
        parts = [f"# {self.title}", "Top-1 in %, with 95 % intervals.", _markdown(table(self.results), numbers=True)]
        if note := _kinds(self.results):
            parts.append(note)
        parts += ["## Protocol", "\n".join(f"- {sentence}" for sentence in self.protocol)]
        if rows := _choices(self.results):
            parts += ["## What was chosen", _markdown(rows)]
        parts += ["## Where it comes from", _markdown([["what", ""], *([k, str(v)] for k, v in self.about.items())])]
        if self.config:
            parts += ["## Configuration", f"```yaml\n{self.config.strip()}\n```"]
        return "\n\n".join(parts) + "\n"


def read(path: Path) -> Report:
    """A report that ``write`` wrote.

    Raises:
        ValueError: If the file is something else.
    """
    try:
        content = json.loads(path.read_text())
        results = [_from_json(entry) for entry in content["results"]]
        return Report(content["title"], results, content["protocol"], content["about"], content["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report of jepa (report.json): {error!r}") from error


def merged(results: Iterable[Result]) -> list[Result]:
    """The same protocol on several runs as one result with a value for each run.

    A run of several draws counts by their mean. Raw pixels are the same in all runs and stay one value; seeds that
    agree by chance are still several.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault(result[:3], []).append(result)
    found = []
    for group in groups.values():
        done = [result for result in group if result.values]
        first = (done or group)[0]
        same = len({result.values for result in done}) <= 1 and first.encoder == "raw pixels"
        if len(done) <= 1 or same:
            found.append(first)
            continue
        means = tuple(math.fsum(result.values) / len(result.values) for result in done)
        chosen = {} if any(result.chosen != first.chosen for result in done) else first.chosen
        found.append(first._replace(values=means, chosen=chosen))
    return found


def table(results: Sequence[Result]) -> list[list[str]]:
    """One row for each protocol, one column for each encoder: ``41.9 [38.9, 45.0]``; the head comes first."""
    columns = sorted(
        dict.fromkeys(result.encoder for result in results),
        key=lambda name: ENCODERS.index(name) if name in ENCODERS else len(ENCODERS),
    )
    cells = {result[:3]: _cell(result) for result in results}
    names = dict.fromkeys((result.protocol, result.label) for result in results)
    rows = [[f"{protocol}, {label}" if label else protocol, protocol, label] for protocol, label in names]
    return [["", *columns]] + [[row[0], *(cells.get((row[1], row[2], c), "-") for c in columns)] for row in rows]


def plain(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _markdown(rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:" if numbers else "---"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _cell(result: Result) -> str:
    if not result.values:
        return "-"
    found = interval(result.values, result.samples)
    low, high = max(0.0, found.low), min(1.0, found.high)
    return f"{100 * found.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _kinds(results: Sequence[Result]) -> str:
    """How the intervals were made."""
    sentences = []
    if samples := sorted({result.samples for result in results if len(result.values) == 1}):
        counts = " or ".join(f"{count:,}" for count in samples)
        sentences.append(f"One run: Wilson's interval, for {counts} samples.")
    if counts_of_runs := sorted({len(result.values) for result in results if len(result.values) > 1}):
        counts = " or ".join(str(count) for count in counts_of_runs)
        sentences.append(f"Several: Student's t over {counts} draws or seeds.")
    missing = {f"{r.protocol}: {r.chosen['left_out']}." for r in results if "left_out" in r.chosen}
    return " ".join([*sentences, *sorted(missing)])


def _choices(results: Sequence[Result]) -> list[list[str]]:
    rows = []
    for result in results:
        settings = {name: value for name, value in result.chosen.items() if name not in (DECIDED, "left_out")}
        if settings:
            decided = f"{100 * result.chosen[DECIDED]:.1f}" if DECIDED in result.chosen else "-"
            words = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in settings.items())
            name = f"{result.protocol}, {result.label}" if result.label else result.protocol
            rows.append([name, result.encoder, words, decided])
    return [["protocol", "encoder", "chosen", "top-1 where it was chosen"], *rows] if rows else []


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_json(result: Result) -> dict[str, Any]:
    entry: dict[str, Any] = {**result._asdict(), "values": list(result.values)}
    entry["chosen"] = {name: "inf" if value == math.inf else value for name, value in result.chosen.items()}
    if result.values:
        entry["interval"] = interval(result.values, result.samples)._asdict()
    return entry


def _from_json(entry: dict[str, Any]) -> Result:
    chosen = {name: math.inf if value == "inf" else value for name, value in entry["chosen"].items()}
    return Result(entry["protocol"], entry["label"], entry["encoder"], tuple(entry["values"]), entry["samples"], chosen)

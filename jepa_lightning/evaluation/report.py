"""`NAME.json` and `NAME.md`: every result with its interval, its settings and its provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jepa_lightning.evaluation.intervals import interval
from jepa_lightning.evaluation.results import Result
from jepa_lightning.evaluation.table import about_intervals, choices, heading, markdown, plain, settings, table

SHOWN = 24
"""Largest number of heads that the terminal lists; of more heads only the chosen ones."""


class Report(NamedTuple):
    """The results of an evaluation, to be printed and written.

    Attributes:
        title: What was evaluated, one line.
        results: Every result.
        protocol: How the results were made, a sentence each.
        about: Commit, hardware, time and the like, by name.
        config: The configuration, YAML text.
        heads: Results of all heads, of which ``results`` has the chosen ones.
        notes: What the reader should know, a sentence each.
        intervals: Whether the table in a terminal has 95 % intervals; those in files always have.
        measure: What the numbers of the table are.
        details: Results that stand in the files alone, for example of each class.
        pictures: Images beside the page, by name.
    """

    title: str
    results: Sequence[Result]
    protocol: Sequence[str]
    about: Mapping[str, Any]
    config: str = ""
    heads: Sequence[Result] = ()
    notes: Sequence[str] = ()
    intervals: bool = True
    measure: str = "Top-1 in %"
    details: Sequence[Result] = ()
    pictures: Mapping[str, Any] = MappingProxyType({})

    def text(self) -> str:
        """The tables for a terminal."""
        parts = [f"{heading(self.results)}\n{plain(table(self.results, self.intervals))}"]
        if self.heads:
            parts.append(plain(settings(self.heads if len(self.heads) <= SHOWN else self.results, self.results)))
        return "\n\n".join([*parts, *self.notes])

    def publish(self, folder: Path | None, name: str = "report") -> None:
        """Print the tables; unless ``folder`` is None, write both files there and say so."""
        print(f"\n\n{self.text()}\n")  # noqa: T201  # what was asked for
        for path in [] if folder is None else self.write(folder, name):
            print(f"written to {path}")  # noqa: T201  # where to look

    def write(self, folder: Path, name: str = "report") -> list[Path]:
        """Write ``name.json`` and ``name.md``; the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "title": self.title,
            "results": [_as_json(result) for result in self.results],
            "protocol": list(self.protocol),
            "about": dict(self.about),
            "config": self.config,
            "heads": [_as_json(result) for result in self.heads],
            "notes": list(self.notes),
            "measure": self.measure,
            "details": [_as_json(result) for result in self.details],
        }
        for picture, image in self.pictures.items():
            image.save(folder / f"{picture}.png")
        paths = [folder / f"{name}.json", folder / f"{name}.md"]
        for path, text in zip(paths, (json.dumps(content, indent=2) + "\n", self.markdown()), strict=True):
            path.write_text(text)
        return paths

    def markdown(self) -> str:
        """The page in Markdown."""
        parts = [f"# {self.title}", heading(self.results), f"{self.measure}, with 95 % intervals."]
        parts += [markdown(table(self.results), numbers=True), about_intervals(self.results), *self.notes]
        parts += [f"![{name}]({name}.png)" for name in self.pictures]
        if self.details:
            parts += ["## Details", markdown(table(self.details), numbers=True)]
        parts += ["## Protocol", "\n".join(f"- {sentence}" for sentence in self.protocol)]
        if rows := choices(self.results):
            parts += ["## Settings", markdown(rows)]
        if self.heads:
            parts += ["## All heads", markdown(settings(self.heads, self.results))]
        parts += ["## Where it comes from", markdown([["what", ""], *([k, str(v)] for k, v in self.about.items())])]
        if self.config:
            parts += ["## Configuration", f"```yaml\n{self.config.strip()}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"


def read(path: Path) -> Report:
    """A report that ``write`` wrote.

    Raises:
        ValueError: If the file is something else.
    """
    try:
        content = json.loads(path.read_text())
        results, heads = ([_from_json(entry) for entry in content[name]] for name in ("results", "heads"))
        rest = {name: content[name] for name in ("title", "protocol", "about", "config", "notes")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no report of jepa ({error!r}): give a JSON file that `jepa evaluate` wrote"
        ) from error
    details = tuple(_from_json(entry) for entry in content.get("details", ()))
    return Report(results=results, heads=heads, details=details, measure=content.get("measure", "Top-1 in %"), **rest)


def written_now() -> str:
    """The time, for ``about``."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _as_json(result: Result) -> dict[str, Any]:
    entry: dict[str, Any] = {**result._asdict(), "values": list(result.values)}
    entry["chosen"] = {name: "inf" if value == math.inf else value for name, value in result.chosen.items()}
    known = result.bounds is not None or result.scale == 100
    if len(result.values) > 1 or (result.values and result.samples and known):
        entry["interval"] = interval(result.values, result.samples, result.bounds)._asdict()
    return entry


def _from_json(entry: dict[str, Any]) -> Result:
    chosen = {name: math.inf if value == "inf" else value for name, value in entry["chosen"].items()}
    fields = {name: entry[name] for name in Result._fields if name != "bounds"}
    fields["bounds"] = tuple(entry["bounds"]) if entry.get("bounds") else None  # older reports have none
    return Result(**{**fields, "values": tuple(entry["values"]), "chosen": chosen})

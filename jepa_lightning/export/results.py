"""What evaluations of a checkpoint found, for its model card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jepa_lightning.weights.stored_config import data_title

NAMES = ("validation.json", "test.json", "heads_validation.json", "heads_test.json")
"""What `jepa validate` and `jepa test` leave in the folder of their run."""


def results(checkpoint: Path) -> list[str]:
    """A section for each evaluation: those beside a checkpoint, and those of it in the folders of other runs there.

    A run of `jepa validate` has a folder of its own, beside that of the training; it counts if it names the checkpoint
    and is not older. Reports of `jepa evaluate` lie in the folder of the training.

    Args:
        checkpoint: The file.
    """
    checkpoint = checkpoint.absolute()
    in_run = checkpoint.parent.name == "checkpoints"
    run = checkpoint.parent.parent if in_run else checkpoint.parent
    files = [folder / name for folder in dict.fromkeys((checkpoint.parent, run)) for name in NAMES]
    if in_run:
        others = sorted(folder for folder in run.parent.iterdir() if folder.is_dir() and folder != run)
        files += [folder / name for folder in others for name in NAMES if _is_of(folder / name, checkpoint)]
    sections = [_section(file) for file in files if file.is_file()]
    reports = sorted(run.glob(f"evaluation/{checkpoint.stem}_*/report.md"))
    return sections + [_excerpt(report) for report in reports]


def _is_of(file: Path, checkpoint: Path) -> bool:
    """Whether an evaluation was of this checkpoint: ``RUN/checkpoints/NAME`` is the same, and it came later."""
    if not file.is_file() or not checkpoint.is_file() or file.stat().st_mtime < checkpoint.stat().st_mtime:
        return False
    return Path(str(_read(file).get("checkpoint"))).parts[-3:] == checkpoint.parts[-3:]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no valid JSON ({error}): remove it, or evaluate again") from error
    return content if isinstance(content, dict) else {}


def _section(file: Path) -> str:
    content = _read(file)
    config = file.parent / "config.yaml"
    data = yaml.safe_load(config.read_text()).get("data") if config.is_file() else None
    on = f"On {data_title(data)}.\n\n" if data else ""
    if isinstance(content.get("scores"), dict):
        body = "\n".join(_table(content["scores"]))
    else:
        body = f"```json\n{json.dumps(content, indent=2)}\n```"
    return f"## Results ({file.parent.name}/{file.name})\n\n{on}{body}"


def _table(scores: dict[str, dict[str, float]]) -> Iterator[str]:
    """A row for each measure, a column for each encoder."""
    yield f"| | {' | '.join(scores)} |"
    yield "|---|" + "---:|" * len(scores)
    for measure in dict.fromkeys(name for column in scores.values() for name in column):
        cells = (column.get(measure) for column in scores.values())
        yield f"| {measure} | {' | '.join('-' if cell is None else f'{cell:.4g}' for cell in cells)} |"


def _excerpt(report: Path) -> str:
    """Of the report of `jepa evaluate`: the table; how it was measured stands in the whole one."""
    lines = report.read_text().split("\n## ")[0].splitlines()
    table = "\n".join(line for line in lines if not line.startswith("# ")).strip()
    return f"## Results ({report.parent.name}/{report.name})\n\n{table}"

"""Results of evaluations of a checkpoint, for its model card."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = ("validation", "test", "heads_validation", "heads_test")
"""Reports that `jepa validate` and `jepa test` leave in the folder of their run, each as ``.json`` and ``.md``."""


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
    files = [folder / f"{name}.md" for folder in dict.fromkeys((checkpoint.parent, run)) for name in NAMES]
    if in_run:
        others = sorted(folder for folder in run.parent.iterdir() if folder.is_dir() and folder != run)
        files += [
            folder / f"{name}.md" for folder in others for name in NAMES if _is_of(folder / f"{name}.json", checkpoint)
        ]
    files += sorted(run.glob(f"evaluation/{checkpoint.stem}_*/report.md"))
    return [_excerpt(file) for file in files if file.is_file()]


def _is_of(file: Path, checkpoint: Path) -> bool:
    """Whether an evaluation was of this checkpoint: ``RUN/checkpoints/NAME`` is the same, and it came later."""
    if not file.is_file() or not checkpoint.is_file() or file.stat().st_mtime < checkpoint.stat().st_mtime:
        return False
    try:
        of = json.loads(file.read_text())["about"]["checkpoint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no report of jepa ({error!r}): remove it, or evaluate again") from error
    return Path(str(of)).parts[-3:] == checkpoint.parts[-3:]


def _excerpt(report: Path) -> str:
    """Data set, table and n of a report; how it was measured stands in the whole one."""
    lines = report.read_text().split("\n## ")[0].splitlines()
    table = "\n".join(line for line in lines if not line.startswith("# ")).strip()
    return f"## Results ({report.parent.name}/{report.name})\n\n{table}"

"""`jepa list`: the configurations that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jepa_lightning.commands.find import shipped_configs
from jepa_lightning.commands.messages import JepaParser


def main(args: Sequence[str]) -> None:
    """Print the name of each configuration, and the first line of its head.

    Args:
        args: The arguments after `jepa list`: none.
    """
    JepaParser(prog="jepa list", description=__doc__).parse_args(list(args))
    found = shipped_configs()
    width = max(len(name) for name in found)
    for name, path in sorted(found.items(), key=lambda entry: (entry[0].count("/"), entry[0])):
        print(f"{name.ljust(width)}  {_head(path)}")  # noqa: T201  # what was asked for


def _head(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""

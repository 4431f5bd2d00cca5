"""The configurations that ship with the package: `jepa list`, and finding those that a command line names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

PACKAGE = Path(__file__).parent.parent
CONFIGS = [folder / "configs" for folder in (PACKAGE, PACKAGE.parent)]
"""Where shipped configurations are: inside the wheel, or beside the package in a clone."""


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the path of a shipped configuration wherever ``--config`` names one that is no file here.

    Raises:
        FileNotFoundError: If it is neither.
    """
    found = list(arguments)
    for position, argument in enumerate(found):
        option, _, value = argument.partition("=")
        if option in ("--config", "-c"):
            if value:
                found[position] = f"{option}={find_config(value)}"
            elif position + 1 < len(found):
                found[position + 1] = find_config(found[position + 1])
    return found


def find_config(name: str) -> str:
    """Path of a configuration: the file itself, or the shipped one of that name."""
    if "://" in name or name.lstrip().startswith("{") or "\n" in name:  # remote, or the text itself
        return name
    if Path(name).is_dir():
        raise IsADirectoryError(f"--config {name} is a folder: give a YAML file")
    if Path(name).is_file():
        _check_syntax(Path(name))
        return name
    shipped = shipped_configs()
    for known, path in shipped.items():
        if Path(name).as_posix() in (known, path.name):
            return str(path)
    raise FileNotFoundError(f"no such config: {name}; shipped are {', '.join(sorted(shipped))}")


def shipped_configs() -> dict[str, Path]:
    """The configurations that ship with the package, by their names: ``papers/ijepa_in1k_vith14.yaml``."""
    return {path.relative_to(folder).as_posix(): path for folder in CONFIGS for path in folder.rglob("*.yaml")}


def _check_syntax(path: Path) -> None:
    """Name the file and the line, which jsonargparse does not."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ValueError(f"{where} is no valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        kind = "empty" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"--config {path} is {kind}: a configuration has sections, model, data and trainer")


def main(args: Sequence[str]) -> None:
    """`jepa list`: print the name of each configuration, and the first line of its head.

    Args:
        args: The arguments after `jepa list`: none.
    """
    summary = "List the configurations that ship with the package, each with what it trains."
    argparse.ArgumentParser(prog="jepa list", description=summary).parse_args(list(args))
    found = shipped_configs()
    width = max(len(name) for name in found)
    for name, path in sorted(found.items(), key=lambda entry: (entry[0].count("/"), entry[0])):
        print(f"{name.ljust(width)}  {_head(path)}")  # noqa: T201  # what was asked for


def _head(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""

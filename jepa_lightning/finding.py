"""Finds what a person names on the command line: shipped configurations and checkpoints of earlier runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning import checkpoint
from jepa_lightning.interop.layouts import is_hub_name, open_layout

CONFIGS = [folder / "configs" for folder in (Path(__file__).parent, Path(__file__).parent.parent)]
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


def option_values(arguments: Sequence[str], option: str) -> list[str]:
    """What stands behind an option, before anything parses it; several values may follow it."""
    found: list[str] = []
    taking = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("-"):
            taking = name == option and not equals
            found += [value] * (name == option and bool(equals))
        elif taking:
            found.append(argument)
    return found


def with_stored_config(arguments: Sequence[str]) -> list[str]:
    """The arguments of `jepa validate|test|predict`; without ``--config`` the checkpoint says what model and data were.

    Of the trainer only the logger and the root folder are taken over: a checkpoint of many GPUs is evaluated on
    whatever there is.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: If it holds no configuration.
    """
    names = option_values(arguments, "--ckpt_path")
    configured = {"--config", "-c", "--model", "--help", "-h", "--print_config"}
    given = {argument.partition("=")[0] for argument in arguments}
    if not arguments or arguments[0] not in ("validate", "test", "predict") or not names or given & configured:
        return list(arguments)
    root = (option_values(arguments, "--trainer.default_root_dir") or ["runs"])[-1]
    path = find_checkpoint(names[-1], root)
    config = checkpoint.stored_config(path)
    if config is None:
        raise ValueError(
            f"--ckpt_path {path} holds no configuration: say on which data, with --config NAME (its encoder is then "
            "evaluated on the data of that configuration)"
        )
    trainer = {name: config["trainer"][name] for name in ("logger", "default_root_dir") if name in config["trainer"]}
    kept = {name: value for name, value in config.items() if name not in ("trainer", "ckpt_path", "init_from")}
    text = yaml.safe_dump({**kept, "trainer": trainer}, sort_keys=False)
    replaced = [path if argument == names[-1] else argument for argument in arguments[1:]]
    replaced = [f"--ckpt_path={path}" if a == f"--ckpt_path={names[-1]}" else a for a in replaced]
    return [arguments[0], f"--config={text}", *replaced]


def find_config(name: str) -> str:
    """Path of a configuration: the file itself, or the shipped one of that name."""
    if "://" in name or name.lstrip().startswith("{") or "\n" in name:  # remote, or the text itself
        return name
    if Path(name).is_file():
        _check_syntax(Path(name))
        return name
    shipped = {path.relative_to(folder).as_posix(): path for folder in CONFIGS for path in folder.rglob("*.yaml")}
    for known, path in shipped.items():
        if Path(name).as_posix() in (known, path.name):
            return str(path)
    raise FileNotFoundError(f"no such config: {name}; shipped are {', '.join(sorted(shipped))}")


def _check_syntax(path: Path) -> None:
    """Name the file and the line, which jsonargparse does not."""
    try:
        yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ValueError(f"{where} is no valid YAML: {getattr(error, 'problem', None) or error}") from error


def find_checkpoint(
    name: str,
    root: str | None,
    option: str = "--ckpt_path",
    wanted: Callable[[dict[str, Any]], bool] = bool,
    ours: bool = True,
) -> str:
    """Path of a checkpoint: the file or folder itself, or the newest of that name among the runs below ``root``.

    It may be in any layout that ``load_encoder`` reads; the name of a folder on Hugging Face's hub is downloaded.

    Args:
        name: What the person wrote.
        root: Where runs are.
        option: For which option, to tell what was found.
        wanted: Whether the model section of a run's configuration is of the right kind; runs without one are not asked.
        ours: Whether a trainer reads it, which also knows key words of Lightning and folders of FSDP.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of no known layout.
    """
    if "://" in name or (ours and name in ("last", "best", "hpc")):  # Lightning's own key words
        return name
    path, root = Path(name).expanduser(), root or "runs"
    if not path.exists() and path.parent == Path():
        runs = sorted(Path(root).rglob(f"checkpoints/{name}"), key=lambda file: file.stat().st_mtime, reverse=True)
        fitting = [run for run in runs if wanted(_model_of(run) or {"class_path": ""})]
        if runs and not fitting:
            kind = str(_model_of(runs[0]).get("class_path")).split(".")[-1]
            raise FileNotFoundError(
                f"{option} {name}: none of the {len(runs)} runs below {root} that have one is of the right kind (the "
                f"newest is {runs[0]}, {kind}): give the path of one that is"
            )
        if fitting:
            path = fitting[0]
            rank_zero_info(f"{option} {name}: the newest is {path}")
    if not path.exists() and is_hub_name(name):
        return str(open_layout(name).path)
    if not path.exists():
        known = sorted({file.name for file in Path(root).rglob("checkpoints/*.ckpt")})
        raise FileNotFoundError(
            f"no such checkpoint: {name}; {option} takes the path of a file, or a name that is then looked for among "
            f"the runs below {root}, which have {', '.join(known) or 'none yet'}"
        )
    if not checkpoint.written_by_lightning(path) or (path.is_dir() and not ours):
        open_layout(path)
    return str(path)


def _model_of(run: Path) -> dict[str, Any]:
    """The model section of the configuration that a run left beside its checkpoints; empty if there is none."""
    try:
        return dict(yaml.safe_load((run.parent.parent / "config.yaml").read_text())["model"])
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return {}

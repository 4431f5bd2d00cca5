"""Finds the checkpoints that a command line names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.weights import is_hub_name


def option_values(arguments: Sequence[str], option: str) -> list[str]:
    """The values of an option in arguments that are not parsed yet; several may follow it."""
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


TAKE_CHECKPOINT = ("validate", "test", "predict", "evaluate", "explore", "export", "plan", "dense")
"""Commands for which a path right after their name (after the task of `jepa dense`) is that of a checkpoint."""


def with_named_option(arguments: Sequence[str]) -> list[str]:
    """`jepa evaluate last.ckpt` is short for `jepa evaluate --ckpt_path last.ckpt`.

    Args:
        arguments: Those of the process, without its name.
    """
    given = list(arguments)
    place = 2 if given[:1] == ["dense"] else 1  # the task comes first
    if len(given) > place and given[0] in TAKE_CHECKPOINT and not given[place].startswith("-"):
        given.insert(place, "--ckpt_path")
    return given


def find_checkpoint(
    name: str, root: str | None = None, option: str = "--ckpt_path", wanted: Callable[[dict[str, Any]], bool] = bool
) -> str:
    """Path of a checkpoint: the file or folder itself, or the newest of that name among the runs below ``root``.

    The name of a folder on Hugging Face's hub, and what Lightning itself understands, is returned as it is.

    Args:
        name: The value of the option.
        root: Folder of the runs; None for ``runs``.
        option: Name of the option, for messages.
        wanted: Whether the model section of a run's configuration is of the right kind; runs without one are not asked.

    Raises:
        FileNotFoundError: If there is none.
    """
    path, root = Path(name).expanduser(), root or "runs"
    if "://" in name or path.exists() or (is_hub_name(name) and not path.parent.exists()):
        return str(path) if path.exists() else name
    runs = sorted(Path(root).rglob(f"checkpoints/{name}"), key=lambda file: file.stat().st_mtime, reverse=True)
    fitting = [run for run in runs if wanted(_model_of(run) or {"class_path": ""})]
    if path.parent == Path() and fitting:
        rank_zero_info(f"{option} {name}: the newest is {fitting[0]}")
        return str(fitting[0])
    if path.parent == Path() and runs:
        kind = str(_model_of(runs[0]).get("class_path")).split(".")[-1]
        raise FileNotFoundError(
            f"{option} {name}: none of the {len(runs)} runs below {root} that have one is of the right kind (the "
            f"newest is {runs[0]}, {kind}): give the path of one that is"
        )
    known = sorted({file.name for file in Path(root).rglob("checkpoints/*.ckpt")})
    raise FileNotFoundError(
        f"no such checkpoint: {name}; {option} takes the path of a file, or a name that is then looked for among the "
        f"runs below {root}, which have {', '.join(known) or 'none yet'}"
    )


def has_encoder(model: dict[str, Any]) -> bool:
    """Whether a model, by its section, has an encoder of its own; a probe names the file of one."""
    return "checkpoint" not in (model.get("init_args") or {})


def _model_of(run: Path) -> dict[str, Any]:
    """The model section of the configuration that a run left beside its checkpoints; empty if there is none."""
    try:
        return dict(yaml.safe_load((run.parent.parent / "config.yaml").read_text())["model"])
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return {}

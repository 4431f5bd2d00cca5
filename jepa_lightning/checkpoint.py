"""Checkpoints that are never half-written, know their own configuration, and rebuild the module they came from."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn

from jepa_lightning.callbacks.config import CONFIG_KEY
from jepa_lightning.messages import condense
from jepa_lightning.methods.base import JEPA, Method
from jepa_lightning.models import Encoder, frozen_copy

_TABLES = ("pos_embed", "predictor_pos_embed")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, flushes to the disk, then renames: the old checkpoint is whole until the new one is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: If it cannot be written; what was there before is untouched.
        """
        if "://" in str(path):  # remote storage: fsspec knows how
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            kept = "; the one that was there is whole" if path.exists() else ""
            raise OSError(f"cannot write the checkpoint {path}: {error}{kept}. Make room and resume") from error
        finally:
            temporary.unlink(missing_ok=True)


def read(path: str | Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint, read without running code that it may hold.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a Lightning checkpoint, or one that holds more than tensors and plain values.
    """
    content = read_any(path)
    if "state_dict" not in content:
        raise ValueError(f"{path} is not a checkpoint of jepa_lightning; for Meta's files use jepa_lightning.load_meta")
    return content


def read_any(path: str | Path) -> dict[str, Any]:
    """The content of a file that torch.save wrote, read without running code that it may hold."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint: give a file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}" + ("" if path.is_absolute() else f" (from {Path.cwd()})"))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not a PyTorch checkpoint that can be read safely (damaged, or no checkpoint)"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of jepa_lightning: it holds a {type(content).__name__}")
    return content


def load(path: str | Path) -> Any:
    """The module (a JEPA, or a probe of one) that a checkpoint was saved from, on the CPU and in eval mode.

    Args:
        path: A ``.ckpt`` that `jepa fit` wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of ours, without a configuration, or one whose tensors do not fit.
    """
    content = read(path)
    if CONFIG_KEY not in content:
        raise ValueError(
            f"{path} holds no configuration (it was not made by `jepa fit`): build the module yourself and call "
            "load_state_dict(torch.load(path, weights_only=True)['state_dict'])"
        )
    config = yaml.safe_load(content[CONFIG_KEY])["model"]
    _refuse_unknown_packages(Path(path), config)
    try:
        module = build(config)
    except (ArgumentError, ValueError) as error:  # many lines, made for a command line
        raise ValueError(f"cannot build what {path} holds: {condense(str(error))}") from error
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"the tensors of {path} do not fit its configuration: {error}") from error
    return module.eval()


def _refuse_unknown_packages(path: Path, config: Any) -> None:
    """A file must not decide what is imported: importing runs code."""
    if isinstance(config, dict):
        package = str(config.get("class_path", __package__)).split(".")[0]
        if package not in sys.modules:
            raise ValueError(
                f"{path} names the class {config['class_path']}, whose package is not imported: "
                f"`import {package}` first if you trust the file"
            )
        for value in config.values():
            _refuse_unknown_packages(path, value)


def load_encoder(path: str | Path, branch: Literal["target", "context"] = "target") -> Encoder:
    """The encoder of a checkpoint as a plain module, frozen, on the CPU: `tokens = encoder(inputs)`.

    Args:
        path: A ``.ckpt`` that `jepa fit` wrote, or a file in Meta's layout.
        branch: ``target`` is the EMA encoder, which the papers evaluate; ``context`` the one that was trained.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of ours or Meta's, or a method without that branch.
    """
    content = read_any(path)
    if "state_dict" in content:
        module = load(path)
    else:
        from jepa_lightning.interop.meta import load_meta

        module = load_meta(path)
    name = {"target": "target_encoder", "context": "encoder"}[branch]
    if not isinstance(module, JEPA) or not hasattr(module, name):
        raise ValueError(
            f"{path} holds {type(module).__name__}, which has no {name}: give the checkpoint of a pretraining"
            + (", or its other branch" if isinstance(module, JEPA) else "")
        )
    return frozen_copy(cast(Encoder, module.get_submodule(name)))


def start_from(module: nn.Module, path: str | Path) -> dict[str, Any] | None:
    """Give a module the networks of a checkpoint, for a new training that starts where another one ended.

    Position tables of another size or length stay those of the module.

    Args:
        module: A JEPA with the same networks.
        path: A ``.ckpt`` that `jepa fit` wrote, or a file in Meta's layout.

    Returns:
        The state of the optimizer, if the checkpoint has one that can be used.

    Raises:
        ValueError: If a tensor is missing, unexpected or of the wrong shape.
    """
    content = read_any(path)
    source, mine = content.get("state_dict"), module.state_dict()
    if source is None:
        from jepa_lightning.interop.meta import load_meta

        source = load_meta(path).state_dict()
    tables = {name for name in mine if name.endswith("pos_embed")}
    source = {name: tensor for name, tensor in source.items() if name.split(".")[-1] not in _TABLES}
    try:
        module.load_state_dict({**source, **{name: mine[name] for name in tables}})
    except RuntimeError as error:
        raise ValueError(
            f"--init_from {path}: its tensors do not fit this model: {' '.join(str(error).split())}"
        ) from error
    return cast("dict[str, Any] | None", (content.get("optimizer_states") or [None])[0])


def build(config: dict[str, Any]) -> Method:
    """A module from the ``model`` section of a configuration."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model")
    return parser.instantiate_classes(parser.parse_object({"model": config})).model

"""Checkpoints that are never half-written, know their own configuration, and rebuild the module they came from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from jepa_lightning.callbacks.config import CONFIG_KEY as CONFIG_KEY
from jepa_lightning.messages import condense
from jepa_lightning.methods.base import Method
from jepa_lightning.models import Encoder, frozen_copy
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.untrusted import read_torch

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
    content = read_torch(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of jepa_lightning: it holds a {type(content).__name__}")
    return content


def written_by_lightning(path: str | Path) -> bool:
    """Whether a trainer can read it as it is: one file with a state dict, or a folder of FSDP; false if damaged."""
    path = Path(path)
    if path.is_dir():
        return not (path / "config.json").is_file()
    try:
        return "state_dict" in read_any(path)
    except ValueError:
        return False


def load(path: str | Path, checkpoint: str | Path | None = None) -> Any:
    """The module (a JEPA, or a probe of one) that a checkpoint was saved from, on the CPU and in eval mode.

    Args:
        path: A ``.ckpt`` that `jepa fit` wrote.
        checkpoint: For a probe: where the checkpoint of its encoder is now, if that has moved.

    Raises:
        FileNotFoundError: No such file, or the encoder of a probe is not where it was.
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
    named = _find_encoder(Path(path), config.get("init_args", {}), checkpoint)
    try:
        module = build(config)
    except (ArgumentError, ValueError, FileNotFoundError) as error:  # many lines, made for a command line
        if named is not None and not Path(named).expanduser().exists():
            raise FileNotFoundError(
                f"{path} needs the encoder that it was trained on, but {named} is neither in {Path.cwd()} nor in a "
                "folder above that file: give the place of the encoder, load(path, checkpoint=...)"
            ) from error
        raise ValueError(f"cannot build what {path} holds: {condense(str(error))}") from error
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"the tensors of {path} do not fit its configuration: {error}") from error
    return module.eval()


def _find_encoder(path: Path, arguments: dict[str, Any], given: str | Path | None) -> str | None:
    """Put the place of a probe's encoder into its arguments: what was given, or below the folders above the probe."""
    named = arguments.get("checkpoint")
    if given is not None and named is None:
        raise ValueError(f"{path} holds its encoder itself: leave out checkpoint={given}")
    if named is not None:
        places = [given] if given is not None else [named, *(folder / named for folder in path.resolve().parents)]
        there = [place for place in places if Path(place).expanduser().exists()]
        arguments["checkpoint"] = str([*there, places[0]][0])
    return arguments.get("checkpoint")


def _refuse_unknown_packages(path: Path, config: Any) -> None:
    """A file must not decide what is imported: importing runs code."""
    if isinstance(config, dict):
        package = str(config.get("class_path", __package__)).split(".")[0]
        if package not in sys.modules:
            raise ValueError(
                f"{path} names the class {config['class_path']}, whose package is not imported: "
                f"`import {package}` first if you trust the file"
            )
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _refuse_unknown_packages(path, value)


def load_encoder(path: str | Path, branch: Literal["target", "context"] = "target", **overrides: Any) -> Encoder:
    """The encoder of any checkpoint as a plain module, frozen, on the CPU: `tokens = encoder(inputs)`.

    ``encoder(inputs, layers=5)`` gives the tokens of another block, ``encoder.preprocess`` makes an input of an image,
    a video or the path of one, ``encoder.normalize`` subtracts the mean and divides by the standard deviation.

    Args:
        path: A ``.ckpt`` that `jepa fit` wrote, a file in Meta's layout, a folder in Hugging Face's layout (or its name
            on the hub, `facebook/vjepa2-vitl-fpc64-256`), a file of timm's ``vit_*_ijepa``, or one of `jepa export`.
        branch: ``target`` is the EMA encoder, which the papers evaluate; ``context`` the one that was trained. Where
            there is only one of them that one is given, and it is said.
        **overrides: What no tensor shows and the layout does not say: num_heads, img_size, num_frames.

    Raises:
        FileNotFoundError: No such file.
        TypeError: If something is given that the file says itself.
        ValueError: Damaged, of no known layout, or without an encoder.
    """
    from jepa_lightning.data.preprocess import Preprocess
    from jepa_lightning.interop.layouts import open_layout

    layout = open_layout(path)
    networks = layout.networks(branch, **overrides)
    rank_zero_info(f"{path} ({layout.title}): the {networks.branch} encoder was read")
    encoder, wanted = networks.encoder, networks.preprocessing
    preprocessing = Preprocessing(wanted.size, mean=wanted.mean, std=wanted.std).with_shorter_side(wanted.shorter_side)
    encoder.normalize = preprocessing.normalize
    encoder.preprocess = Preprocess(preprocessing, encoder.num_frames)
    return encoder


def start_from(module: nn.Module, path: str | Path) -> dict[str, Any] | Callable[[nn.Module], Any] | None:
    """Give a module the networks of a checkpoint, for a new training that starts where another one ended.

    Position tables of another size or length stay those of the module. From a checkpoint that holds one encoder alone
    both encoders start, and a predictor that it does not have stays as it was initialised.

    Args:
        module: A JEPA with the same networks.
        path: Any checkpoint, see load_encoder.

    Returns:
        The state of the optimizer, or a function that makes it for a module that is ready to train; None if the
        checkpoint has none that can be used.

    Raises:
        ValueError: If a tensor is missing, unexpected or of the wrong shape.
    """
    from jepa_lightning.interop.layouts import Meta, OneEncoder, Own, open_layout
    from jepa_lightning.interop.meta_training import optimizer_state
    from jepa_lightning.interop.networks import check

    layout, mine = open_layout(path), module.state_dict()
    source = {name: tensor for name, tensor in layout.tensors().items() if name.split(".")[-1] not in _TABLES}
    kept = {name: tensor for name, tensor in mine.items() if name.endswith("pos_embed")}
    if isinstance(layout, OneEncoder):
        there, wanted = ({name.split(".")[0] for name in names} for names in (source, mine))
        kept |= {name: tensor for name, tensor in mine.items() if name.split(".")[0] not in there}
        source = {name: tensor for name, tensor in source.items() if name.split(".")[0] in wanted}
        new = ", ".join(sorted(wanted - there))
        rank_zero_info(f"--init_from {path} holds one encoder, the start of all; anew start: {new or 'nothing'}")
    try:
        check(layout.path, "this model", mine, {**source, **kept})
    except ValueError as error:
        raise ValueError(f"--init_from {error}") from error
    module.load_state_dict({**source, **kept})
    if isinstance(layout, Own):
        return cast("dict[str, Any] | None", (layout.content.get("optimizer_states") or [None])[0])
    return partial(optimizer_state, layout.path, layout.content) if isinstance(layout, Meta) else None


def build(config: dict[str, Any]) -> Method:
    """A module from the ``model`` section of a configuration."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model")
    return parser.instantiate_classes(parser.parse_object({"model": config})).model


def stored_config(path: str | Path) -> dict[str, Any] | None:
    """The configuration of the run that wrote a checkpoint, in the file or beside a folder of FSDP; None without one.

    Raises:
        ValueError: If it is damaged, or names a class whose package is not imported.
    """
    path, text = Path(path), None
    if written_by_lightning(path):
        beside = path.parent.parent / "config.yaml"
        text = read_any(path).get(CONFIG_KEY) if path.is_file() else beside.read_text() if beside.is_file() else None
    if text is None:
        return None
    try:
        config = dict(yaml.safe_load(text))
        dict(config["model"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the configuration in it is damaged ({type(error).__name__})") from error
    _refuse_unknown_packages(path, config)
    _find_encoder(path, config["model"].get("init_args", {}), None)
    return config


def untrained_encoder(path: str | Path, encoder: Encoder) -> Encoder:
    """An encoder as that of a checkpoint was before it was trained: frozen, on the CPU.

    Args:
        path: The checkpoint. What `jepa fit` wrote is built anew from its configuration and seed.
        encoder: Its encoder. Where the checkpoint says nothing of its beginning, a copy of it is initialised anew, with
            seed 0 and the initial values of PyTorch's layers.
    """
    config = stored_config(path) or {}
    seed = config.get("seed_everything")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed if isinstance(seed, int) else 0)
        if "encoder" in config.get("model", {}).get("init_args", {}):
            return frozen_copy(build(config["model"]).encoder)
        fresh = frozen_copy(encoder)
        for module in fresh.modules():
            if reset := cast("Callable[[], None] | None", getattr(module, "reset_parameters", None)):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
    return fresh

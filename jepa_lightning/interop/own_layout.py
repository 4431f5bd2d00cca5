"""One encoder out of a checkpoint of ours, without building the rest of the method."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from jepa_lightning.checkpoint import CONFIG_KEY, load
from jepa_lightning.interop.description import build_encoder, build_predictor, device_for
from jepa_lightning.interop.networks import IMAGENET_MEAN, IMAGENET_STD, MARGIN, Branch, Networks, Preprocessing, filled

NETWORK_OF: dict[Branch, str] = {"target": "target_encoder", "context": "encoder"}


def own_networks(path: Path, content: dict[str, Any], branch: Branch, predictor: bool = False) -> Networks:
    """One encoder of a checkpoint that `jepa fit` wrote, frozen.

    Args:
        path: The file, for messages.
        content: What is in it.
        branch: ``target`` is the EMA encoder, and the encoder itself in methods without one.
        predictor: Read the predictor too, if the method has one.

    Raises:
        ValueError: If the method has no encoder of its own, or a tensor is missing, unexpected or of the wrong shape.
    """
    config = configuration(path, content)
    model, state = config["model"], content["state_dict"]
    arguments = model.get("init_args", {})
    name = NETWORK_OF[branch]
    if "encoder" not in arguments and any(key.startswith("encoder.") for key in state):  # fine-tuned
        tuned = load(path).frozen_encoder()  # its sizes stand in the checkpoint that it began with
        return Networks(tuned, branch, preprocessing_of(config.get("data") or {}, tuned.img_size))
    if "encoder" not in arguments:
        kind = str(model.get("class_path")).split(".")[-1]
        raise ValueError(f"{path} holds {kind}, which has no {name}: give the checkpoint of a pretraining")
    if branch == "target" and not has_ema(config):
        name = "encoder"
    encoder = filled(
        path,
        name,
        partial(build_encoder, path, arguments["encoder"]),
        _part(state, name),
        device_for(arguments["encoder"]),
    )
    read = None
    if predictor and isinstance(arguments.get("predictor"), dict):
        build = partial(build_predictor, path, arguments["predictor"], encoder)
        read = filled(path, "predictor", build, _part(state, "predictor"), device_for(arguments["predictor"]))
    return Networks(encoder, branch, preprocessing_of(config.get("data") or {}, encoder.img_size), read)


def has_ema(config: dict[str, Any]) -> bool:
    """Whether a training had a target encoder beside the one that the optimizer trained."""
    return (config["model"].get("init_args") or {}).get("momentum", "not an option") is not None


def data_of(data: dict[str, Any]) -> str:
    """The ``data`` section of a configuration in a few words: ``ImageDataModule, cats``."""
    arguments = data.get("init_args") or {}
    kind, source = ((part or {}).get("class_path") or "" for part in (data, arguments.get("source")))
    return f"{kind.split('.')[-1]}, {arguments.get('root') or source.split('.')[-1] or 'its own source'}"


def configuration(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the training.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        config = yaml.safe_load(content[CONFIG_KEY])
        if not isinstance(config["model"], dict):
            raise TypeError("model is no section")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the configuration in it is damaged ({type(error).__name__})") from error
    return dict(config)


def _part(state: dict[str, Any], network: str) -> dict[str, Any]:
    prefix = f"{network}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def preprocessing_of(data: dict[str, Any], size: tuple[int, int]) -> Preprocessing:
    """What evaluation did in that training."""
    arguments = data.get("init_args") or {}
    inputs = arguments.get("inputs") or {}
    inputs = inputs.get("init_args", inputs)
    transform = (arguments.get("transform") or {}).get("init_args") or {}
    mean, std = arguments.get("normalization") or (inputs.get("mean"), inputs.get("std"))
    return Preprocessing(
        size,
        tuple(mean or IMAGENET_MEAN),
        tuple(std or IMAGENET_STD),
        shorter_side=round(min(size) / transform.get("crop_pct", 1 / MARGIN)),
    )

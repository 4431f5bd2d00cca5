"""Checkpoints that `jepa fit` wrote: Lightning's content, and the configuration of the run as text."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.models import ActionPredictor, Encoder, Predictor, frozen_copy
from jepa_lightning.preprocessing import CROP_PCT, Preprocessing, default_normalization
from jepa_lightning.weights import stored_config
from jepa_lightning.weights.base import FREE, Hints, Progress, States, Weights, part_of
from jepa_lightning.weights.description import Description, check_sizes, encoder_builder, option, predictor_builder
from jepa_lightning.weights.file import File, read
from jepa_lightning.weights.limits import check_progress
from jepa_lightning.weights.meta_sizes import encoder_arguments
from jepa_lightning.weights.names import without_prefix
from jepa_lightning.weights.networks import Branch, Networks, check, filled, outlined
from jepa_lightning.weights.policy import CheckpointError, DoesNotFit, Unreadable

COMPILED = "_orig_mod."
"""What torch.compile puts before the names of a module."""
EXTRA = "_extra_state"
"""What PyTorch calls the state of a module that is no tensor."""
CONFIG_KEY = "jepa_config"
"""Where a checkpoint keeps the resolved configuration, as YAML text."""
NETWORK_OF: dict[Branch, str] = {"target": "target_encoder", "context": "encoder"}


class Own(Weights):
    """A ``.ckpt`` that `jepa fit` wrote.

    Attributes:
        state: The state dict of the method, still in the file, without the prefix of torch.compile.
    """

    format = "checkpoint of jepa_lightning"

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self._config = stored_config.parse(file.path, file.content[CONFIG_KEY])
        self.state = _uncompiled(file.path, file.content["state_dict"])
        described = {"model": self._config["model"], EXTRA: self.state.get(EXTRA)}
        check_sizes(file.path, described, self.tensors())

    @classmethod
    def claims(cls, file: File) -> bool:
        """Whether it has tensors of a method and the configuration of the run."""
        return file.by_torch and CONFIG_KEY in file.content and isinstance(file.content.get("state_dict"), dict)

    @property
    def config(self) -> dict[str, Any]:
        """``model``, ``data``, ``seed_everything``, and the options of the trainer that say how long it is."""
        return self._config

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments of the method."""
        return self.config["model"].get("init_args") or {}

    @property
    def family(self) -> str:
        """The class that was trained."""
        return str(self.config["model"].get("class_path")).split(".")[-1]

    @property
    def by_lightning(self) -> bool:
        """A trainer reads it, unless torch.compile has changed the names."""
        return self.state.keys() == self.file.content["state_dict"].keys()

    def resumed(self, module: Any, fitting: bool) -> dict[str, Any]:
        """The content of the file with the names that the method has."""
        return {**self.file.content, "state_dict": self.state}

    @property
    def two_encoders(self) -> bool:  # type: ignore[override]
        """Whether there was an EMA copy beside the encoder that the optimizer trained."""
        return self.arguments.get("momentum", "not an option") is not None

    @property
    def progress(self) -> Progress:
        """The step, and the epoch that it was in."""
        content = self.file.content
        step, epoch = (content.get(name) for name in ("global_step", "epoch"))
        if not isinstance(step, int) or not isinstance(epoch, int) or step < 0 or epoch < 0:
            raise Unreadable(f"{self.path} says neither its step nor its epoch: copy it again")
        return Progress(step, epoch, bool(content.get("optimizer_states")))

    @property
    def licence(self) -> str:
        """Whoever trained it decides."""
        return f"{FREE}: say it here."

    # ------------------------------------------------------------------ networks

    def tensors(self) -> dict[str, Tensor]:
        """As they are in the file."""
        return {name: tensor for name, tensor in self.state.items() if isinstance(tensor, Tensor)}

    def states(self) -> States:
        """By the first part of the name; parameters of the method itself are under ``method``."""
        states: States = {}
        for name, tensor in self.tensors().items():
            network, _, rest = name.rpartition(".") if "." not in name else name.partition(".")
            states.setdefault(network or "method", {})[rest] = tensor
        return states

    @cached_property
    def encoder_description(self) -> Description:
        """What says how to build the encoder.

        Raises:
            CheckpointError: If nothing does, because it is in another file.
        """
        if isinstance(self.arguments.get("encoder"), dict):
            return self.arguments["encoder"]
        stored = self.state.get(EXTRA)
        described = stored.get("encoder") if isinstance(stored, dict) else None
        if isinstance(described, dict):  # fine-tuned
            return described
        state, named = part_of(self.state, "encoder"), self.arguments.get("checkpoint")
        if not state or not isinstance(named, str):
            raise CheckpointError(
                f"{self.path} holds {self.family}, which has no encoder of its own: give the checkpoint of a "
                "pretraining"
            )
        began = read(found_beside(self.path, named))  # files of older versions do not describe what they fine-tuned
        if Own.claims(began):
            described = Own(began).arguments.get("encoder")
            if not isinstance(described, dict):  # not asked further: files could name each other in a circle
                raise CheckpointError(f"{self.path} names {began.path} as its encoder, which has none of its own")
            return described
        known = {name: value for name, value in (self.arguments.get("overrides") or {}).items() if value is not None}
        sizes = encoder_arguments(self.path, state, Hints(**{"rotary": "pos_embed" not in state, **known}))
        return {"class_path": "jepa_lightning.VisionTransformer", "init_args": _plain(sizes)}

    def describe(self, encoder: Encoder) -> Description:
        """As the configuration says it."""
        return self.encoder_description

    def _network(self, branch: Branch) -> str:
        ema = self.two_encoders and any(name.startswith("target_encoder.") for name in self.state)
        return NETWORK_OF[branch] if ema else "encoder"

    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        description, name = self.encoder_description, self._network(branch)
        if "momentum" in self.arguments and self.two_encoders:
            name = NETWORK_OF[branch]
        state = part_of(self.state, name)
        encoder = filled(self.file, name, encoder_builder(self.path, description, state), state)
        networks = Networks(encoder, branch, self.preprocessing(encoder.img_size))
        described, state = self.arguments.get("predictor"), part_of(self.state, "predictor")
        predicts_tokens = any(name.startswith("predictor_embed.") for name in state)
        if not predictor or not isinstance(described, dict) or not predicts_tokens:
            return networks
        kind: type[Predictor | ActionPredictor] = ActionPredictor if "action_encoder.weight" in state else Predictor
        build = predictor_builder(self.path, described, encoder, state, kind)
        return networks.with_predictor(filled(self.file, "predictor", build, state))

    def outline(self, hints: Hints | None = None) -> Encoder | None:
        """The encoder without its weights; None if it has none of its own."""
        try:
            description = self.encoder_description
        except CheckpointError:
            return None
        name = self._network("target")
        state = part_of(self.state, name)
        encoder = outlined(self.path, encoder_builder(self.path, description, state))
        check(self.path, name, encoder.state_dict(), state)
        return encoder

    def preprocessing(self, size: tuple[int, int]) -> Preprocessing:
        """What evaluation did in that training, for inputs of this size."""
        arguments = self.config["data"].get("init_args") or {}
        inputs = arguments.get("inputs") or {}
        inputs = inputs.get("init_args", inputs)
        transform = (arguments.get("transform") or {}).get("init_args") or {}
        mean, std = arguments.get("normalization") or (inputs.get("mean"), inputs.get("std"))
        crop = transform.get("crop_pct", CROP_PCT)
        usual = default_normalization(self._channels())
        return Preprocessing(size, crop, tuple(mean or usual[0]), tuple(std or usual[1]))

    def _channels(self) -> int:
        described = self.arguments.get("encoder")
        return int(described.get("init_args", {}).get("in_chans", 3)) if isinstance(described, dict) else 3

    def untrained(self, encoder: Encoder) -> Encoder:
        """The encoder, built with the seed of the run."""
        described = self.arguments.get("encoder")
        if not isinstance(described, dict):
            return super().untrained(encoder)
        build = encoder_builder(self.path, described, part_of(self.state, "encoder"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config["seed_everything"] or 0)
            return frozen_copy(build())

    # ------------------------------------------------------------------ training

    def optimizer_state(self, module: Any) -> dict[str, Any] | None:
        """As Lightning stored it."""
        states = self.file.content.get("optimizer_states")
        return states[0] if isinstance(states, list) and states else None

    def check_whole(self, optimizer: bool = True) -> None:
        """Compare all tensors with their checksums, and look for values that are not finite.

        Args:
            optimizer: Also those of the optimizer, for a training that goes on.

        Raises:
            Unreadable: If one is damaged, or a counter of the training is impossible.
            DoesNotFit: If one is not finite.
        """
        if optimizer:
            check_progress(self.path, self.file.content)
        for name in ("state_dict", "optimizer_states") if optimizer else ("state_dict",):
            self.file.check_all(self.file.content.get(name), name)


def _uncompiled(path: Path, state: dict[Any, Any]) -> dict[str, Any]:
    """The state dict without the prefix that torch.compile puts before all names, or before all those of a network.

    Raises:
        DoesNotFit: If only some have it, or something is neither a tensor nor the extra state of a module.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not (isinstance(value, Tensor) or name.split(".")[-1] == EXTRA):
            kind = type(value if isinstance(name, str) else name).__name__
            raise DoesNotFit(f"{path}: state_dict holds a {kind} ({str(name)[:80]}), not only tensors with names")
    state = without_prefix(path, "state_dict", state, COMPILED)
    found = {name: value for name, value in state.items() if "." not in name}
    for network in dict.fromkeys(name.partition(".")[0] for name in state if "." in name):
        inner = without_prefix(path, network, part_of(state, network), COMPILED)
        found |= {f"{network}.{name}": value for name, value in inner.items()}
    return found


def found_beside(path: Path, named: str) -> Path:
    """A file that a checkpoint names: where it says, else below one of the folders above the checkpoint.

    Raises:
        FileNotFoundError: If it is in none of these places.
    """
    for place in (Path(named).expanduser(), *(folder / named for folder in path.resolve().parents)):
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{path} needs the encoder that it was trained on, but {named} is neither in {Path.cwd()} nor in a folder "
        "above that file: give the place of the encoder, load(path, checkpoint=...)"
    )


def _plain(sizes: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments as a file has them."""
    positions = sizes.get("positions")
    return sizes if positions is None else {**sizes, "positions": option(positions)}

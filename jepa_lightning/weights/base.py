"""The interface of an opened checkpoint of any format: its networks, its description, its training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from jepa_lightning.models import Encoder, VisionTransformer, frozen_copy
from jepa_lightning.weights.description import describe_encoder
from jepa_lightning.weights.file import File
from jepa_lightning.weights.networks import Branch, Networks, family
from jepa_lightning.weights.policy import CheckpointError

States = dict[str, dict[str, Tensor]]
"""The tensors of each network (encoder, target_encoder, predictor, ...), under our names."""
FREE = "These weights are licensed as whoever trained them decides; if the training started from others, theirs applies"
META = "Meta's weights of I-JEPA and V-JEPA, also converted ones, are CC BY-NC 4.0: no commercial use"
META_2 = "Meta's weights of V-JEPA 2 are MIT"


@dataclass(frozen=True)
class Hints:
    """Sizes that neither the tensors nor the format of a file show.

    Args:
        num_heads: Attention heads of the encoder.
        img_size: Side of the inputs in pixels, or (height, width).
        num_frames: Frames of the clips.
        predictor_num_heads: Attention heads of the predictor.
        rotary: Whether positions are rotary.

    Raises:
        ValueError: If a number is below 1.
    """

    num_heads: int | None = None
    img_size: int | tuple[int, int] | None = None
    num_frames: int | None = None
    predictor_num_heads: int | None = None
    rotary: bool | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(number is not None and number is not False and number < 1 for number in numbers):
                raise ValueError(f"{name} {value}: give a number of at least 1")

    @property
    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


class Progress(NamedTuple):
    """How far a training had come.

    Attributes:
        step: Finished optimizer steps; None where the file does not say.
        epoch: Finished epochs; None where the file does not say.
        resumable: Whether the optimizer is there, so that the training can go on.
    """

    step: int | None = None
    epoch: int | None = None
    resumable: bool = False


class Weights(ABC):
    """A checkpoint of one format; no network is built before it is asked for.

    Attributes:
        format: Name of the format in texts.
        takes: Names of the hints that files of this format may need.
        two_encoders: Whether the format holds the context encoder and the target encoder.
        file: The content of the file.
        path: The file or the folder.
    """

    format: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    two_encoders: ClassVar[bool] = True

    def __init__(self, file: File) -> None:
        self.file, self.path = file, file.path

    @classmethod
    @abstractmethod
    def claims(cls, file: File) -> bool:
        """Whether a file is of this format."""

    @abstractmethod
    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        """See ``networks``."""

    @abstractmethod
    def states(self) -> States:
        """All tensors; the only encoder of a file is under the names of both."""

    def networks(self, branch: Branch = "target", predictor: bool = False, hints: Hints | None = None) -> Networks:
        """One encoder, frozen, and the predictor if it is asked for and in the file.

        Args:
            branch: ``target`` is the EMA encoder, ``context`` the one that was trained; a format that has only one
                gives that one and says so.
            predictor: Read the predictor too.
            hints: Sizes that the file does not say.

        Raises:
            TypeError: If a hint is given that the file says itself.
            CheckpointError: If the file is damaged, or has no encoder.
        """
        return self._networks(branch, predictor, self.hints((hints or Hints()).given))

    def outline(self, hints: Hints | None = None) -> Encoder | None:
        """The encoder without its weights; None if there is none.

        Raises:
            HintNeeded: If a hint is needed that was not given.
        """
        return self.networks(hints=hints).encoder

    def hints(self, given: Mapping[str, Any]) -> Hints:
        """Hints by their names; None stands for one that is not given.

        Raises:
            TypeError: If there is no such hint, or the file says it itself.
        """
        unknown = sorted(name for name, value in given.items() if value is not None and name not in self.takes)
        if unknown:
            raise TypeError(
                f"{self.path} ({self.format}): {', '.join(unknown)} cannot be given. What can be given: "
                f"{', '.join(self.takes) or 'nothing, the file says it all'}"
            )
        return Hints(**given)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names that they have in a method: ``encoder.norm.weight``."""
        return {
            f"{network}.{name}": tensor for network, state in self.states().items() for name, tensor in state.items()
        }

    # ------------------------------------------------------------------ description

    @property
    def family(self) -> str:
        """``I-JEPA``, ``V-JEPA``, ``V-JEPA 2`` or the class that was trained."""
        return family(self.networks().encoder)

    @property
    def config(self) -> dict[str, Any]:
        """Sections ``model`` and ``data`` of the configuration of the training; empty if the file has none."""
        return {}

    @property
    def progress(self) -> Progress:
        """How far the training had come, as far as the file says."""
        return Progress()

    @property
    def licence(self) -> str:
        """The licence of the weights, as far as it is known."""
        return f"{META_2 if self.family.startswith('V-JEPA 2') else META}. If these are others, say so here."

    @property
    def by_lightning(self) -> bool:
        """Whether Lightning's trainer can read the file itself."""
        return False

    def resumed(self, module: Any, fitting: bool) -> dict[str, Any]:
        """The content of a Lightning checkpoint with the same weights.

        Args:
            module: The method that gets them, set up.
            fitting: Whether its training is resumed; otherwise only the networks are needed.

        Raises:
            CheckpointError: If the format has no training to resume.
        """
        raise CheckpointError(
            f"{self.path} ({self.format}) has no training to resume: start a new one from it with --init_from"
        )

    def optimizer_state(self, module: Any) -> dict[str, Any] | None:
        """The state of the optimizer for a module that is set up for training; None without one."""
        return None

    def describe(self, encoder: Encoder) -> dict[str, Any]:
        """``{"class_path": ..., "init_args": {...}}``, from which the encoder of this file can be built."""
        return describe_encoder(cast(VisionTransformer, encoder))

    def untrained(self, encoder: Encoder) -> Encoder:
        """The encoder as it was at initialisation: frozen, on the CPU.

        Args:
            encoder: The encoder of this file. A format that says nothing of the initial weights gives a copy with the
                initial values of PyTorch's layers, of seed 0.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = frozen_copy(encoder)
            for module in fresh.modules():
                if reset := getattr(module, "reset_parameters", None):
                    cast(Any, reset)()
                    continue
                for parameter in module.parameters(recurse=False):
                    nn.init.normal_(parameter, std=0.02)
        return fresh


class OneEncoder(Weights):
    """A format that holds one encoder, perhaps with its predictor."""

    two_encoders = False

    def states(self) -> States:
        """The encoder under both names."""
        networks = self._networks("target", True, Hints())
        states = {name: dict(networks.encoder.state_dict()) for name in ("encoder", "target_encoder")}
        if networks.predictor is not None:
            states["predictor"] = dict(networks.predictor.state_dict())
        return states


def part_of(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors whose names begin with that of a network, without it."""
    prefix = f"{network}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

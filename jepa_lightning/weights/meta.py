"""Checkpoints of Meta's ijepa, jepa and vjepa2 repositories: ``{encoder, predictor, target_encoder, opt, epoch, ...}``.

Tensors have our names, behind the prefixes of DDP, of torch.compile and of the wrapper for masks. The weights that Meta
released for I-JEPA and V-JEPA are CC BY-NC 4.0; this reader is not derived from their code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa_lightning.models import ActionPredictor, Encoder, Predictor, VisionTransformer
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import meta_dense, meta_training
from jepa_lightning.weights.base import Hints, Progress, States, Weights
from jepa_lightning.weights.file import File
from jepa_lightning.weights.meta_sizes import action_predictor_arguments, encoder_arguments, predictor_arguments
from jepa_lightning.weights.names import without_prefix
from jepa_lightning.weights.networks import Branch, Networks, check, filled, outlined
from jepa_lightning.weights.policy import DoesNotFit

NETWORKS = ("encoder", "predictor", "target_encoder")
DISTILLED = "ema_encoder"
"""What the released files of V-JEPA 2.1's distilled models call their target encoder, which is the only one in them."""
NETWORK_OF: dict[Branch, str] = {"target": "target_encoder", "context": "encoder"}
PREFIXES = ("module.", "_orig_mod.", "backbone.")
"""What stands before the names of all tensors of a network: of DDP, of torch.compile, of the wrapper for masks."""
LEGACY = ("pos_embed", "predictor_pos_embed")
"""Left in the released files of V-JEPA 2, whose rotary networks do not use them."""
CONDITIONED, DENSE = "V-JEPA 2-AC", "V-JEPA 2.1"
MASK_TOKENS_V2 = 10
"""In the released files of V-JEPA 2; a position table beside any other number is V-JEPA's, and used."""


class Meta(Weights):
    """A checkpoint of Meta's repositories, or one in their format."""

    format = "checkpoint in Meta's format"
    takes = ("num_heads", "img_size", "predictor_num_heads", "num_frames", "rotary")

    @classmethod
    def claims(cls, file: File) -> bool:
        """Whether it has one of the networks by its name."""
        return file.by_torch and any(isinstance(file.content.get(name), dict) for name in (*NETWORKS, DISTILLED))

    @cached_property
    def _plain(self) -> States:
        """The tensors of each network that is there, without prefixes.

        Raises:
            CheckpointError: If there is no encoder, or something is no tensor.
        """
        content = self.file.content
        networks = {name: content[name] for name in NETWORKS if isinstance(content.get(name), dict)}
        if isinstance(content.get(DISTILLED), dict):
            networks.setdefault("target_encoder", content[DISTILLED])
        if not {"encoder", "target_encoder"} & set(networks):
            missing = ", ".join(name for name in NETWORKS if name not in networks)
            there = ", ".join(sorted(str(name)[:40] for name in content)[:8])
            raise DoesNotFit(f"{self.path} is no JEPA checkpoint in Meta's format: it has no {missing}, but {there}")
        return {name: plain(self.path, name, state) for name, state in networks.items()}

    def is_rotary(self, hints: Hints) -> bool:
        """Whether the positions of the networks are rotary: as given, else by the tensors."""
        return self.kind(hints).startswith("V-JEPA 2")

    def kind(self, hints: Hints) -> str:
        """``I-JEPA``, ``V-JEPA``, ``V-JEPA 2``, ``V-JEPA 2-AC`` or ``V-JEPA 2.1``: by the tensors, and as given."""
        networks = self._plain
        encoder = networks.get("target_encoder", networks.get("encoder", {}))
        predictor = networks.get("predictor", {})
        if "patch_embed_img.proj.weight" in encoder:
            return DENSE
        if "action_encoder.weight" in predictor:
            return CONDITIONED
        if "patch_embed.proj.weight" not in encoder or encoder["patch_embed.proj.weight"].ndim != 5:
            return "I-JEPA"
        rotary = hints.rotary
        if rotary is None:
            tokens = sum(name.startswith("mask_tokens.") for name in predictor)
            rotary = "pos_embed" not in encoder or tokens == MASK_TOKENS_V2
        return "V-JEPA 2" if rotary else "V-JEPA"

    @property
    def family(self) -> str:
        """By the tensors."""
        return self.kind(Hints())

    def states(self, hints: Hints | None = None) -> States:
        """The tensors of the networks that are there, without those that nothing uses."""
        if not self.is_rotary(hints or Hints()):
            return self._plain
        return {net: {k: v for k, v in state.items() if k not in LEGACY} for net, state in self._plain.items()}

    def sources(self, frozen: bool) -> dict[str, str]:
        """Which network of the file each network of a method comes from.

        Args:
            frozen: Whether the method has one encoder, which is not trained: it is the target encoder of the file, or
                the encoder where there is no other.
        """
        if frozen:
            target = "target_encoder" if "target_encoder" in self._plain else "encoder"
            return {"encoder": target, "predictor": "predictor"}
        one = self.family == DENSE and "encoder" not in self._plain  # distilled
        return {**{name: name for name in NETWORKS}, **({"encoder": "target_encoder"} if one else {})}

    def encoder_builder(self, network: str, hints: Hints) -> Callable[[], Encoder]:
        """What builds one of the encoders, with initial weights; its sizes are read off the tensors here."""
        state = self.states(hints)[network]
        if self.kind(hints) == DENSE:
            return meta_dense.encoder(self.path, state, hints)
        hints = replace(hints, rotary=self.is_rotary(hints))
        return partial(VisionTransformer, **encoder_arguments(self.path, state, hints))

    def predictor_builder(self, hints: Hints) -> Callable[..., Predictor | ActionPredictor]:
        """What builds the predictor for an encoder, with initial weights; see encoder_builder."""
        state, kind, heads = self.states(hints)["predictor"], self.kind(hints), hints.predictor_num_heads
        if kind == DENSE:
            return meta_dense.predictor(self.path, state, heads)
        if kind == CONDITIONED:
            return partial(ActionPredictor, **action_predictor_arguments(self.path, state, heads))
        return partial(Predictor, **predictor_arguments(self.path, state, heads, self.is_rotary(hints)))

    def _encoder(self, branch: Branch, hints: Hints) -> tuple[str, Branch, Callable[[], Encoder]]:
        """The name of a network, the branch that it is, and what builds it."""
        if NETWORK_OF[branch] not in self._plain:
            branch = "context" if branch == "target" else "target"
        name = NETWORK_OF[branch]
        return name, branch, self.encoder_builder(name, hints)

    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        name, found, build = self._encoder(branch, hints)
        if found != branch:
            warnings.warn(f"{self.path} has no {NETWORK_OF[branch]}: its {name} is taken", stacklevel=2)
        states = self.states(hints)
        encoder = filled(self.file, name, build, states[name])
        networks = Networks(encoder, found, Preprocessing(encoder.img_size))
        if not predictor or "predictor" not in states:
            return networks
        read = partial(self.predictor_builder(hints), encoder)
        return networks.with_predictor(filled(self.file, "predictor", read, states["predictor"]))

    def outline(self, hints: Hints | None = None) -> Encoder | None:
        """The encoder without its weights."""
        return outlined(self.path, self._encoder("target", self.hints((hints or Hints()).given))[2])

    # ------------------------------------------------------------------ training

    @property
    def progress(self) -> Progress:
        """By the epoch in the file and the count in the state of AdamW."""
        return meta_training.progress(self.file.content)

    def optimizer_state(self, module: Any) -> dict[str, Any] | None:
        """The state of its AdamW, for ``module.adamw()``."""
        return meta_training.optimizer_state(self.path, self.file.content, self._plain, module)

    def resumed(self, module: Any, fitting: bool) -> dict[str, Any]:
        """See Weights.

        Raises:
            CheckpointError: If the file is of another method, or has no training to resume.
        """
        states, found = self.states(), self.sources(not any(p.requires_grad for p in module.encoder.parameters()))
        for name in found.values():
            network = getattr(module, name, None)
            if name not in states:
                raise DoesNotFit(f"{self.path} has no {name}")
            if network is None:
                raise DoesNotFit(f"{self.path} has a {name}, {type(module).__name__} has none")
            try:
                check(self.path, name, network.state_dict(), states[name])
            except DoesNotFit as error:
                raise DoesNotFit(f"{error}. Give the model of that training, or --init_from") from error
            self.file.check_all(states[name], name)
        state = {f"{name}.{key}": tensor for name, source in found.items() for key, tensor in states[source].items()}
        if not fitting:
            return {"epoch": 0, "global_step": 0, "state_dict": state}
        self.file.check_all(self.file.content.get("opt"), "opt")
        return {"state_dict": state, **meta_training.resumed(self, module)}


def plain(path: Path, network: str, state: dict[Any, Any]) -> dict[str, Tensor]:
    """The tensors of one network without the prefixes that all of them have.

    Raises:
        DoesNotFit: If something is no tensor, or only some of the tensors have a prefix.
    """
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor if isinstance(name, str) else name).__name__
            raise DoesNotFit(f"{path}: {network} holds a {kind} ({str(name)[:80]}), not only tensors with names")
    for prefix in PREFIXES:
        state = without_prefix(path, network, state, prefix)
    return state

"""Attentive probes of Meta's jepa and vjepa2: ``{classifier(s), opt, epoch, ...}``."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from jepa_lightning.models import Encoder
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.weights.base import Hints, States, Weights
from jepa_lightning.weights.file import File
from jepa_lightning.weights.meta import plain
from jepa_lightning.weights.meta_sizes import HEADS, depth_of, tensor_of
from jepa_lightning.weights.networks import Branch, Networks, check, filled
from jepa_lightning.weights.policy import CheckpointError, DoesNotFit, HintNeeded

KEYS = ("classifiers", "classifier")
UNUSED = "pooler.cross_attention_block.xattn.proj."
"""In the files of V-JEPA, but never applied; V-JEPA 2 has dropped it."""


class MetaProbe(Weights):
    """Attentive classifiers: one (V-JEPA), or as many as were trained side by side (V-JEPA 2).

    Their outputs are in the order of Meta's lists of labels; the data must number the classes in the same way.
    """

    format = "attentive probe in Meta's format"
    two_encoders = False

    @classmethod
    def claims(cls, file: File) -> bool:
        """Whether it has probes by their name."""
        return file.by_torch and any(isinstance(file.content.get(key), dict | list) for key in KEYS)

    @cached_property
    def _states(self) -> list[dict[str, Tensor]]:
        """The tensors of each probe, without prefixes and without those that nothing uses."""
        content = self.file.content
        found = next(content[key] for key in KEYS if isinstance(content.get(key), dict | list))
        states = []
        for number, state in enumerate(found if isinstance(found, list) else [found]):
            if not isinstance(state, dict):
                raise DoesNotFit(f"{self.path}: probe {number} is a {type(state).__name__}, not a state dict")
            whole = plain(self.path, f"probe {number}", state)
            states.append({key: tensor for key, tensor in whole.items() if not key.startswith(UNUSED)})
        return states

    def heads(self, num_heads: int | None = None) -> nn.ModuleList:
        """The classifiers, frozen.

        Args:
            num_heads: Attention heads; 16 in every probe of V-JEPA 2, in V-JEPA's those of the encoder, known by its
                width.

        Raises:
            DoesNotFit: If a tensor is missing, unexpected or of the wrong shape.
            HintNeeded: If the width is no published one.
        """
        return nn.ModuleList(self._head(number, state, num_heads) for number, state in enumerate(self._states))

    def _head(self, number: int, state: dict[str, Tensor], num_heads: int | None) -> AttentiveClassifier:
        name = f"probe {number}"
        linear = tensor_of(self.path, name, state, "linear.weight", 2)
        dim, depth = linear.shape[1], self.depth
        heads = num_heads or (16 if depth > 1 else HEADS.get(dim))
        if heads is None:
            raise HintNeeded(f"{self.path}: embed_dim {dim} is no published size: give num_heads=")
        return filled(self.file, name, partial(AttentiveClassifier, dim, linear.shape[0], heads, depth), state)

    @property
    def depth(self) -> int:
        """Layers of a probe, which are alike in all."""
        return 1 + depth_of({key.removeprefix("pooler."): tensor for key, tensor in self._states[0].items()}, "blocks")

    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        raise CheckpointError(
            f"{self.path} holds attentive probes, not an encoder: `jepa validate --config attentive_probe.yaml "
            "--model.checkpoint ENCODER --ckpt_path` uses them"
        )

    def outline(self, hints: Hints | None = None) -> Encoder | None:
        """There is no encoder."""
        return None

    def states(self) -> States:
        """The tensors of each head."""
        return {f"head {number}": state for number, state in enumerate(self._states)}

    @property
    def family(self) -> str:
        """V-JEPA has one layer, V-JEPA 2 four."""
        return "V-JEPA 2" if self.depth > 1 else "V-JEPA"

    def resumed(self, module: Any, fitting: bool) -> dict[str, Any]:
        """The content of a Lightning checkpoint with these heads, for an AttentiveProbe.

        Raises:
            CheckpointError: If the heads are others than those of the module, or training should go on.
        """
        if fitting:
            raise CheckpointError(f"{self.path}: the training of Meta's probes does not go on here: train new ones")
        heads = self.heads(module.num_heads)
        if len(heads) != len(module.heads):
            raise DoesNotFit(
                f"{self.path} has {len(heads)} heads, lr and weight_decay make {len(module.heads)}: give --model.lr "
                f"with {len(heads)} values and --model.weight_decay with one; without training they mean nothing"
            )
        for number, (theirs, mine) in enumerate(zip(heads, module.heads, strict=True)):
            check(self.path, f"head {number}", mine.state_dict(), theirs.state_dict())
        state = {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}
        state = {**state, "best": torch.tensor(0), "_extra_state": module.get_extra_state()}
        return {"epoch": 0, "global_step": 0, "state_dict": state}

"""Reads the attentive probes of Meta's jepa and vjepa2: ``{classifier(s), opt, epoch, ...}``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import __version__
from torch import Tensor, nn

from jepa_lightning.checkpoint import AtomicCheckpointIO, read_any
from jepa_lightning.interop.meta import plain
from jepa_lightning.interop.meta_sizes import HEADS, depth_of, tensor_of
from jepa_lightning.interop.networks import check, filled
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.probing import AttentiveProbe

KEYS = ("classifiers", "classifier")
UNUSED = "pooler.cross_attention_block.xattn.proj."
"""In the files of V-JEPA, but never applied; V-JEPA 2 has dropped it."""


def is_probe(content: dict[str, Any]) -> bool:
    """Whether a file holds probes."""
    return any(isinstance(content.get(key), dict | list) for key in KEYS)


def load_probes(path: str | Path, content: Any = None, num_heads: int | None = None) -> nn.ModuleList:
    """The attentive classifiers of such a file, frozen: one (V-JEPA), or as many as were trained side by side.

    Args:
        path: The file, for example ``k400-probe.pth.tar`` or ``ssv2-vitl-16x2x3.pt``.
        content: What is in it, if that was read already.
        num_heads: Attention heads; 16 in every probe of V-JEPA 2, in V-JEPA's those of the encoder, known by its width.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, or a tensor is missing, unexpected or of the wrong shape.
    """
    path = Path(path)
    content = read_any(path) if content is None else content
    if not is_probe(content):
        raise ValueError(f"{path} holds no probe of Meta's: it has neither {' nor '.join(KEYS)}")
    found = next(content[key] for key in KEYS if isinstance(content.get(key), dict | list))
    states = found if isinstance(found, list) else [found]
    return nn.ModuleList(_probe(path, f"probe {number}", state, num_heads) for number, state in enumerate(states))


class MetaProbeIO(AtomicCheckpointIO):
    """Lets a trainer read a file of Meta's probes as a checkpoint of ours.

    Their outputs are in the order of Meta's lists of labels; the data must number the classes in the same way.

    Args:
        module: The probe that takes them, with an encoder of its own.
    """

    def __init__(self, module: AttentiveProbe) -> None:
        self.module = module

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a Lightning checkpoint with these heads.

        Raises:
            ValueError: If they are others than those of the module, or training should go on.
        """
        module = self.module
        if module.trainer.training:
            raise ValueError(f"{path}: the training of Meta's probes does not go on here: train new ones")
        heads = load_probes(path, num_heads=module.num_heads)
        if len(heads) != len(module.heads):
            raise ValueError(
                f"{path} has {len(heads)} heads, lr and weight_decay make {len(module.heads)}: give --model.lr with "
                f"{len(heads)} values and --model.weight_decay with one; without training they mean nothing"
            )
        for number, (theirs, mine) in enumerate(zip(heads, module.heads, strict=True)):
            check(Path(path), f"head {number}", mine.state_dict(), theirs.state_dict())
        state = {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}
        return {
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": __version__,
            "state_dict": {**state, "best": torch.tensor(0), "_extra_state": module.get_extra_state()},
        }


def _probe(path: Path, name: str, state: Any, num_heads: int | None) -> AttentiveClassifier:
    if not isinstance(state, dict):
        raise ValueError(f"{path}: {name} is a {type(state).__name__}, not a state dict")
    state = plain(path, name, state)
    linear: Tensor = tensor_of(path, name, state, "linear.weight", 2)
    dim, depth = (
        linear.shape[1],
        1 + depth_of({key.removeprefix("pooler."): tensor for key, tensor in state.items()}, "blocks"),
    )
    heads = num_heads or (16 if depth > 1 else HEADS.get(dim))
    if heads is None:
        raise ValueError(f"{path}: embed_dim {dim} is no published size: give num_heads=")
    wanted = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
    return filled(path, name, partial(AttentiveClassifier, dim, linear.shape[0], heads, depth), wanted)

"""Reads the checkpoints of Meta's ijepa, jepa and vjepa2 repositories: ``{encoder, predictor, target_encoder, ...}``.

The weights that Meta released for I-JEPA and V-JEPA are CC BY-NC 4.0; this reader is not derived from their code.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from jepa_lightning.interop.meta_sizes import Given, encoder_arguments, predictor_arguments
from jepa_lightning.interop.networks import Branch, Networks, check, filled, papers_preprocessing
from jepa_lightning.methods import IJEPA, VJEPA
from jepa_lightning.models import Predictor, VisionTransformer
from jepa_lightning.schedules import Constant, Cosine, Linear, WarmupCosine
from jepa_lightning.untrusted import own, read_torch

NETWORKS = ("encoder", "predictor", "target_encoder")
NETWORK_OF: dict[Branch, str] = {"target": "target_encoder", "context": "encoder"}
LEGACY = ("pos_embed", "predictor_pos_embed")
"""Left in the released files of V-JEPA 2, whose rotary networks do not use them."""
MASK_TOKENS_V2 = 10
"""In the released files of V-JEPA 2; a position table beside any other number is V-JEPA's, and used."""
SCHEDULES: dict[str, dict[str, Any]] = {
    "I-JEPA": {
        "lr": WarmupCosine(start=2e-4, peak=1e-3, final=1e-6, warmup_epochs=40),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.996, final=1.0),
    },
    "V-JEPA": {
        "lr": WarmupCosine(start=2e-4, peak=6.25e-4, final=1e-6, warmup_epochs=40),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.998, final=1.0),
        "ipe_scale": 1.25,
    },
    "V-JEPA 2": {
        "lr": WarmupCosine(start=1e-4, peak=5.25e-4, final=5.25e-4, warmup_epochs=40),
        "weight_decay": Constant(0.04),
        "momentum": Constant(0.99925),
        "share_mask_token": True,
    },
}
"""The published ones."""


class MetaFile(NamedTuple):
    """A checkpoint in Meta's layout, its tensors still in the file.

    Attributes:
        path: The file.
        networks: The state of each network that is there, without prefixes and without tensors that nothing uses.
        family: ``I-JEPA``, ``V-JEPA``, ``V-JEPA 2``, ``V-JEPA 2-AC`` or ``V-JEPA 2.1``.
        content: Everything in the file.
    """

    path: Path
    networks: dict[str, dict[str, Tensor]]
    family: str
    content: dict[str, Any]

    @property
    def rotary(self) -> bool:
        """Whether the positions of the networks are rotary."""
        return self.family.startswith("V-JEPA 2")


def read_meta(path: Path, content: Any = None, rotary: bool | None = None) -> MetaFile:
    """Open a file in Meta's layout.

    Args:
        path: The file.
        content: What is in it, if that was read already.
        rotary: Whether the networks have rotary positions; None to tell from the tensors.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of this layout.
    """
    if content is None and not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    content = read_torch(path) if content is None else content
    there = content if isinstance(content, dict) else {}
    networks = {name: there[name] for name in NETWORKS if isinstance(there.get(name), dict)}
    if not {"encoder", "target_encoder"} & set(networks):
        missing = ", ".join(name for name in NETWORKS if name not in networks)
        raise ValueError(f"{path} is no JEPA checkpoint in Meta's layout: it has no {missing}{_there(there)}")
    networks = {name: plain(path, name, state) for name, state in networks.items()}
    family = _family(networks, rotary)
    if family.startswith("V-JEPA 2"):
        networks = {net: {k: v for k, v in state.items() if k not in LEGACY} for net, state in networks.items()}
    return MetaFile(path, networks, family, content)


def _family(networks: dict[str, dict[str, Tensor]], rotary: bool | None) -> str:
    encoder = networks.get("target_encoder", networks.get("encoder", {}))
    predictor = networks.get("predictor", {})
    if "patch_embed_img.proj.weight" in encoder:
        return "V-JEPA 2.1"
    if "action_encoder.weight" in predictor:
        return "V-JEPA 2-AC"
    if "patch_embed.proj.weight" not in encoder or encoder["patch_embed.proj.weight"].ndim != 5:
        return "I-JEPA"
    if rotary is None:
        tokens = sum(name.startswith("mask_tokens.") for name in predictor)
        rotary = "pos_embed" not in encoder or tokens == MASK_TOKENS_V2
    return "V-JEPA 2" if rotary else "V-JEPA"


def plain(path: Path, network: str, state: dict[Any, Any]) -> dict[str, Tensor]:
    """The tensors of one network without the one leading ``module.`` of DDP and the ``backbone.`` of the mask wrapper.

    Raises:
        ValueError: If something is no tensor, or only some of the tensors have a prefix.
    """
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor if isinstance(name, str) else name).__name__
            raise ValueError(f"{path}: {network} holds a {kind} ({str(name)[:80]}), not only tensors with names")
    for prefix in ("module.", "backbone."):
        without = [name for name in state if not name.startswith(prefix)]
        if without and len(without) < len(state):
            raise ValueError(
                f"{path}: {len(state) - len(without)} of {len(state)} tensors of {network} have the prefix {prefix}, "
                f"the others, for example {without[0]}, have not: a whole file has it everywhere or nowhere"
            )
        state = state if without else {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_meta(
    path: str | Path,
    num_heads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    predictor_num_heads: int | None = None,
    num_frames: int | None = None,
    rotary: bool | None = None,
    **overrides: Any,
) -> IJEPA | VJEPA:
    """The method with all three networks of a checkpoint in Meta's layout; every tensor is used, or it is an error.

    A file with a 2-D patch projection is I-JEPA, with a 3-D one V-JEPA, and among those one without position tables,
    or with the ten mask tokens of the released files, is V-JEPA 2. Training goes on from such a file with `jepa fit
    --ckpt_path FILE`, which also reads its optimizer and its epoch: see meta_training.

    Args:
        path: The file, for example ``IN1K-vit.h.14-300e.pth.tar``, ``vitl16.pth.tar`` or ``vitl.pt``.
        num_heads: Attention heads; needed where the width is none of the published sizes, because no tensor shows it.
        img_size: Size in pixels of the training inputs; read off the (square) position table if None, 256 or what
            patches cover of it for V-JEPA 2, which has none (any size works).
        predictor_num_heads: Attention heads of the predictor, if not those of the encoder (V-JEPA 2: 12).
        num_frames: Frames of the training clips; read off the position table if None, 16 for V-JEPA 2.
        rotary: Whether the networks have rotary positions; None to tell from the tensors.
        **overrides: Other constructor arguments of the method (lr, weight_decay, momentum, betas, ipe_scale, compile,
            loss_exp, share_mask_token). The schedules default to the published ones.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of this layout, or a tensor is missing, unexpected or of the wrong shape.
    """
    file = read_meta(Path(path), rotary=rotary)
    missing = [name for name in NETWORKS if name not in file.networks]
    if missing:
        raise ValueError(f"{path} is no JEPA checkpoint in Meta's layout: it has no {', '.join(missing)}")
    if file.family not in SCHEDULES:
        raise ValueError(
            f"{path} is of {file.family}, which is not supported yet; the methods here are {', '.join(SCHEDULES)}"
            + (" (jepa_lightning.load_encoder reads its encoder)" if file.family == "V-JEPA 2-AC" else "")
        )
    given = Given(num_heads, img_size, num_frames, file.rotary)
    encoder = encoder_arguments(file.path, file.networks["encoder"], given)
    predictor = predictor_arguments(file.path, file.networks["predictor"], predictor_num_heads, file.rotary)
    arguments = {**SCHEDULES[file.family], **overrides}
    with torch.device("meta"):  # no memory and no time for weights that are read anyway
        method = IJEPA if file.family == "I-JEPA" else VJEPA
        module: IJEPA | VJEPA = method(VisionTransformer(**encoder), partial(Predictor, **predictor), **arguments)
    networks = {name: module.get_submodule(name) for name in NETWORKS}
    for name, network in networks.items():
        check(file.path, name, network.state_dict(), file.networks[name])
    for name, network in networks.items():
        network.load_state_dict({key: own(tensor) for key, tensor in file.networks[name].items()}, assign=True)
    rank_zero_info(f"{path} is {file.family}: encoder, target encoder and predictor were read")
    return module.to("cpu")  # where everything is; Lightning noted where it was built


def meta_networks(
    path: Path,
    branch: Branch = "target",
    content: Any = None,
    predictor: bool = False,
    num_heads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    predictor_num_heads: int | None = None,
    num_frames: int | None = None,
    rotary: bool | None = None,
) -> Networks:
    """One encoder of such a file, frozen; no other network is built, or read.

    Args:
        path: The file.
        branch: ``target`` is the EMA encoder; where a file has only one, that is taken and it is said.
        content: What is in it, if that was read already.
        predictor: Read the predictor too.
        num_heads: This and the others as in load_meta.
        img_size: Size in pixels.
        predictor_num_heads: Attention heads of the predictor.
        num_frames: Frames.
        rotary: Whether the network has rotary positions.

    Raises:
        ValueError: Not a checkpoint of this layout, or a tensor is missing, unexpected or of the wrong shape.
    """
    file = read_meta(path, content, rotary)
    if file.family == "V-JEPA 2.1":
        raise ValueError(
            f"{path} is of V-JEPA 2.1, whose encoder (two patch embeddings, norms of several levels) is not supported "
            "yet: give a checkpoint of V-JEPA 2"
        )
    found: Branch = branch
    if NETWORK_OF[branch] not in file.networks:
        found = "context" if branch == "target" else "target"
        rank_zero_warn(f"{path} has no {NETWORK_OF[branch]}: its {NETWORK_OF[found]} is taken")
    name = NETWORK_OF[found]
    state = file.networks[name]
    arguments = encoder_arguments(path, state, Given(num_heads, img_size, num_frames, file.rotary))
    encoder = filled(path, name, partial(VisionTransformer, **arguments), dict(state))
    read = None
    if predictor and "predictor" in file.networks and file.family in SCHEDULES:
        state = file.networks["predictor"]
        build = partial(Predictor, encoder, **predictor_arguments(path, state, predictor_num_heads, file.rotary))
        read = filled(path, "predictor", build, dict(state))
    return Networks(encoder, found, papers_preprocessing(encoder.img_size), read)


def _there(content: dict[Any, Any]) -> str:
    """``, but epoch, model``: what was found in place of what was looked for."""
    names = sorted(str(name)[:40] for name in content)[:8]
    return f", but {', '.join(names)}" if names else ""
